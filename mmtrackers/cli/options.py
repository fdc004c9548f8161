"""Options that several commands have."""

from typing import Annotated

from typer import Argument, Option

Model = Annotated[str, Argument(help="Folder or Hub id of a tracker or an adapter.")]
BaseModel = Annotated[str | None, Option(help="The base, in place of the one that an adapter names.")]
Device = Annotated[str, Option(help="cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[str, Option(help="float32, bfloat16 or float16 weights.")]
AllowMissing = Annotated[bool, Option("--allow-missing", help="Feed RGB in the place of a missing second stream.")]
