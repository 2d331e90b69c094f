#!/bin/sh
# Write constraints.txt from the environment that the tests last passed in.
.venv/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools 2>/dev/null |
    sed 's/+cpu$//' | grep -v ' @ ' >constraints.txt
wc -l constraints.txt
