"""The card of a merged model: README.md with the front matter that the Hugging Face Hub reads."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.weights import provenance

# Stability's files by name -> the model on the Hub. Of any other base its file's name is all that is known.
_ON_THE_HUB = dict.fromkeys(
    ("sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors", "stable-diffusion-xl-base-1.0"),
    "stabilityai/stable-diffusion-xl-base-1.0",
)


def render(run: dict, origin: dict, resolution: int, weights: str | int, dtype: str) -> str:
    """`run` and `origin` are what provenance.RUN and provenance.SOURCES hold."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # it is Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = lambda text: json.dumps(text, ensure_ascii=False)  # JSON strings are YAML's
    name = origin["base"]["name"]
    return environment.get_template("card.md.jinja").render(
        title=provenance.title(run, origin),
        base=_ON_THE_HUB.get(name),
        origin=origin,
        run=run,
        train=run["description"]["train"],
        diffusion=run["description"]["diffusion"],
        resolution=resolution,
        step=provenance.step(run, weights),
        hashes=provenance.own(run, origin, weights, dtype),
    )
