"""stub"""


def create(model: str) -> None:
    """x"""
