"""Where `siglip-ref` and `python -m siglip_ref` start: Ctrl-C is heard from the first moment on."""

import signal

from siglip_ref.process.interrupt import guarded


def main() -> None:
    """Run the command; once it is over, Ctrl-C changes nothing any more."""
    try:
        with guarded("siglip-ref"):
            from siglip_ref.cli.main import main as run

            run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
