"""Options that say whether answers may be given to other questions that mean the same."""

from pathlib import Path
from typing import Annotated

import typer

from stagemesh.v1.registry_pb2 import Semantic

On = Annotated[
    bool,
    typer.Option(
        "--semantic/--no-semantic",
        help="Give kept answers to other questions that mean the same, once it was measured how often that is wrong.",
    ),
]
Encoder = Annotated[
    str,
    typer.Option(
        "--semantic-encoder",
        help="What compares questions: a deployed model, a local folder or a hub id; all-MiniLM-L6-v2 when not given.",
        metavar="MODEL",
    ),
]
Allowed = Annotated[
    float,
    typer.Option(
        "--allowed-false-hit-rate",
        help="Share of semantic hits that may be wrong; 0: 0.01. Less needs more evidence: about 4 / RATE samples.",
        min=0,
        max=0.5,
    ),
]
Confidence = Annotated[
    float,
    typer.Option(
        "--semantic-confidence",
        help="With which it must be known that there are no more; 0: 0.95.",
        min=0,
        max=0.9999,
    ),
]
VerifyShare = Annotated[
    float,
    typer.Option(
        "--semantic-verify", help="Share of semantic hits that are computed for real as well.", min=0, max=1
    ),
]
Loose = Annotated[
    bool,
    typer.Option(
        "--semantic-loose",
        help="Also questions with words that no rule accounts for, once evidence about such pairs bounds their errors.",
    ),
]


def semantic_of(
    on: bool, encoder: str, allowed: float, confidence: float, verify_share: float, loose: bool
) -> Semantic | None:
    """What was asked for; None when nothing was. An encoder or a rate turns it on, too."""
    if not (on or encoder or allowed or confidence or loose):
        return None
    folder = Path(encoder).expanduser()
    return Semantic(
        enabled=True,
        encoder=str(folder.resolve()) if encoder and folder.is_dir() else encoder,
        allowed_false_hit_rate=allowed,
        confidence=confidence,
        verify_share=verify_share,
        loose=loose,
    )
