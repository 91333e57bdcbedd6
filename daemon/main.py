"""Entry point of `hob`."""


def main() -> None:
    raise SystemExit("not built yet")
