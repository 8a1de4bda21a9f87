"""python -m fastrnn info | bench | demo"""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "info": "what this machine runs, and why something is off",
    "bench": "measure against torch, onnxruntime and openvino (options: bench --help)",
    "demo": "train on real data, torch.nn and fastrnn side by side (options: demo --help)",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; everything after its name goes to the command."""
    text = "\n".join(f"  {name:6} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn", epilog=f"commands:\n{text}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="info, bench or demo")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 2
    given = parser.parse_args(argv)
    if given.command == "info":
        if given.arguments:
            parser.error(f"info takes no arguments, got {given.arguments}")
        importlib.import_module("fastrnn.info").show_config()
        return 0
    return int(importlib.import_module(f"fastrnn.{given.command}").main(given.arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
