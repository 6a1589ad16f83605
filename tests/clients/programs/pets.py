"""The object that the default model is made to answer with."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Pet(BaseModel):
    """An animal"""

    animal: Literal["cat", "dog", "horse"]
    tame: bool
