"""Generating text with a decoder's bundle: sampling, stop strings, cache, and the loop over them."""

from nsn_edge.runtimes.generation.config import GenerationConfig
from nsn_edge.runtimes.generation.decoder import Decoder, KVCache, Step
from nsn_edge.runtimes.generation.generator import Generation, GenerationStream, Generator, Piece
from nsn_edge.runtimes.generation.text import TextCodec, TextStream, TokenizerCodec

__all__ = [
    "Decoder",
    "Generation",
    "GenerationConfig",
    "GenerationStream",
    "Generator",
    "KVCache",
    "Piece",
    "Step",
    "TextCodec",
    "TextStream",
    "TokenizerCodec",
]
