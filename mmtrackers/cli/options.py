"""Options that several commands have."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Folder or Hub id of a tracker or an adapter.")]
BaseModel = Annotated[
    str | None, typer.Option(help="Folder or Hub id of the base, in place of the one an adapter names.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16 weights.")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Feed RGB in the place of a second stream that is not there.")
]
