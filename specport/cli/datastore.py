"""`specport datastore`: make a datastore of the user's files for `--draft suffix`."""

from __future__ import annotations

import argparse
from pathlib import Path

from specport.cli import options, terminal

EXAMPLES = """\
examples:
  specport datastore build src docs --out code-store
  specport run --draft suffix --datastore code-store --prompt-file task.txt

Text and code files are read; hidden folders, links, binary, generated and unreadable files are left out.
The datastore holds their text, as token ids of one model's tokenizer. To be rid of it, delete the folder.
"""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "datastore", help="draft from your own files", epilog=EXAMPLES,
        description="Make a datastore of your files, which --draft suffix drafts from.",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    build = actions.add_parser("build", help="from files and folders", epilog=EXAMPLES)
    build.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files, or folders of files")
    build.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="where to; an older one is replaced"
    )
    build.add_argument("--model", metavar="MODEL", help="whose tokenizer, as for specport run --model")
    build.add_argument(
        "--max-tokens", type=int, metavar="N", help="files beyond it are left out (default: 20000000)"
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
    left_out = f"; left out: {', '.join(f'{n} {reason}' for reason, n in reasons)}" if reasons else ""
    terminal.say(f"{built.num_tokens} tokens of {built.num_files} files for {files.name}{left_out}")
    terminal.write(f"{args.out}\n")
    return 0
