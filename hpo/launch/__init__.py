"""Launchers: start worker processes, and watch over them until a study is done."""
