#!/opt/hpo/bin/python
"""Tell Docker whether a container is well: its storage answers, or with an address as argument, that does.

Light on purpose, as every worker runs it twice a minute: `hpo status` takes seconds to load Optuna.
"""

import os
import sys
from pathlib import Path
from urllib.request import urlopen

import psycopg

LIMIT_S = 5


def check_storage() -> None:
    """Connect to the database, if the storage is one that a connection can be lost to."""
    url = os.environ.get("HPO_STORAGE", "sqlite:///hpo.db")
    password_file = os.environ.get("HPO_PASSWORD_FILE")
    password = Path(password_file).read_text().strip() if password_file else None
    if url.startswith("postgres"):
        psycopg.connect(url, password=password, connect_timeout=LIMIT_S).close()


if __name__ == "__main__":
    try:
        if sys.argv[1:]:
            urlopen(sys.argv[1], timeout=LIMIT_S).close()
        else:
            check_storage()
    except (OSError, psycopg.Error) as error:
        sys.exit(f"not well: {error}")
