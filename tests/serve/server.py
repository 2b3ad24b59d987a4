"""The service as its own process, with stand-ins for workers: `python -m tests.serve.server DATA PORT`."""

from __future__ import annotations

import sys
from pathlib import Path

from latentsync import cli_serve
from latentsync.serve.addresses import Doorkeeper
from latentsync.serve.api import create_app
from latentsync.serve.settings import Settings
from tests.jobs.conftest import SMALL, QuickDesk


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    listener = cli_serve.listen("127.0.0.1", int(sys.argv[2]))
    with listener, QuickDesk(Path(sys.argv[1]), models=["demo"], devices=["cpu", "cpu"], limits=SMALL) as desk:
        say(cli_serve.address(listener))
        settings = Settings(rate=0, webhook_secret="0123456789abcdef", keeper=Doorkeeper(hosts={"127.0.0.1"}))
        cli_serve.run(create_app(desk, settings), listener)
    say("closed")
