"""``python -m bge_integrations.cli``."""

from . import main

raise SystemExit(main())
