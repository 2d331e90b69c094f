"""``python -m bge_integrations``: the ``bge`` command."""

from .cli import main

raise SystemExit(main())
