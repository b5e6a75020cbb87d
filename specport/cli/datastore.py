"""`specport datastore`: build a datastore from the user's files for `--draft suffix`."""

from __future__ import annotations

import argparse
from pathlib import Path

from specport.cli import options, terminal

EXAMPLES = """\
examples:
  specport datastore build src docs --out code-store
  specport run --draft suffix --datastore code-store --prompt-file task.txt

Text and code files are read. Hidden folders, links, binary, generated and unreadable files are skipped.
The datastore holds their text as token ids of one model's tokenizer. To remove it, delete its folder.
"""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "datastore", help="draft from your own files", epilog=EXAMPLES,
        description="Build a datastore of your files; --draft suffix drafts from it.",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    build = actions.add_parser("build", help="build a datastore from files and folders", epilog=EXAMPLES)
    build.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file or folder to read")
    build.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="output folder; an existing datastore is replaced",
    )
    build.add_argument(
        "--model", metavar="MODEL", help="model whose tokenizer is used, as for specport run --model"
    )
    build.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="most tokens; further files are skipped (default: 20000000)",
    )
    build.add_argument("--quiet", action="store_true", help="no progress bar")
    options.add_trust_option(build)


def run(args: argparse.Namespace) -> int:
    from specport.drafters.retrieval.datastore import build
    from specport.progress import part
    from specport.runtime.loading import Loader
    from specport.text.tokenizer import load_tokenizer

    with terminal.progress(args.quiet) as progress:
        trust = bool(args.trust_remote_code)
        loader = Loader.on("auto", trust_remote_code=trust, progress=part(progress, 0.0, 0.1))
        files = loader.files(args.model, loader.profile.precision)
        built = build(
            args.paths, args.out, load_tokenizer(files.folder),
            **options.given(args, ("max_tokens",)), progress=part(progress, 0.1, 1.0),
        )  # fmt: skip
    reasons = [
        *built.skipped.items(),
        *([("beyond --max-tokens", built.num_left_out)] if built.num_left_out else []),
    ]
    left_out = f"; skipped: {', '.join(f'{n} {reason}' for reason, n in reasons)}" if reasons else ""
    terminal.say(f"{built.num_tokens} tokens from {built.num_files} files for {files.name}{left_out}")
    terminal.write(f"{args.out}\n")
    return 0
