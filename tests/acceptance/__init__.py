"""Use the installed command line, and a browser, as a person would."""
