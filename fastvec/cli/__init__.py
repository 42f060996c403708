from fastvec.cli.entry import main

__all__ = ["main"]
