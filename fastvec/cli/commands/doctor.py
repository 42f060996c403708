"""The command `fastvec doctor`."""

import click

from fastvec.cli.streams import print_report


@click.command(short_help="Check whether this machine can run fastvec.")
@click.option(
    "-o", "--output", default=".", metavar="PATH", help="Where a job will write. [default: the current folder]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(output: str, as_json: bool) -> None:
    """Check whether this machine can run fastvec, and if not, say what to do.

    Packages, devices, memory and folders are checked, a few texts are embedded and compared with transformers, and
    every kernel with its reference. The network is not used. The report names no user and no host.

    The exit code is 1 if a check fails. A note is something that works, but could be better.
    """
    from fastvec.doctor.diagnosis import diagnose

    print_report(diagnose(output), as_json)
