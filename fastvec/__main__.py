from fastvec.cli.entry import process

process()
