"""Models at a host: one client, one retry layer, one rate limiter; the protocols are data."""
