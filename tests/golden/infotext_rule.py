"""What make_infotext.py and tests/sampling/test_infotext.py share: pictures whose PNGs other programs read."""

from pipeline.sampling.picture import Picture

SHA = "0123456789abcdef" * 4
_PLAIN = {"prompt": "a red circle", "negative_prompt": None, "width": 64, "height": 96, "steps": 20}


def picture(**own) -> Picture:
    return Picture(**(_PLAIN | {"guidance_scale": 5.0, "seed": 7, "number": 2} | own))


# Name -> (picture, sampler, rescale, zero_terminal_snr, model, sha256[, flow_shift, emphasis]), as infotext takes them.
CASES = {
    "plain": (picture(), "euler", 0.0, False, "merged", SHA),
    "negative": (picture(negative_prompt="x, y: z", seed=2**32 - 1), "euler_ancestral", 0.0, False, "base", None),
    "rescaled": (picture(guidance_scale=2.5), "dpmpp_2m", 0.7, True, "merged", SHA),
    "karras": (picture(steps=1, number=0), "dpmpp_2m_karras", 0.0, False, "merged", SHA),
    "ddim": (picture(width=1024, height=640), "ddim", 0.0, False, "merged", SHA),
    "unipc": (picture(), "unipc", 0.0, False, "merged", SHA),
    "flow": (picture(), "euler", 0.0, False, "merged", SHA, 2.5),
    "brackets": (picture(prompt="a (red:1.3) circle"), "euler", 0.0, False, "merged", SHA, None, "none"),
    "half": (picture(prompt="half a (red circle"), "euler", 0.0, False, "merged", SHA, None, "none"),
    "weights": (picture(prompt="a (red:1.3) <lora:x:1>"), "euler", 0.0, False, "merged", SHA, None, "a1111"),
    "empty": (picture(prompt="", negative_prompt=""), "euler", 0.0, False, "merged", SHA),
    "lines": (picture(prompt="two,\nlines: of\n\nit", negative_prompt="a\nb"), "euler", 0.0, False, "merged", SHA),
    "settings": (picture(prompt="Steps: 3, Sampler: DDIM, Seed: 5"), "euler", 0.0, False, "merged", SHA),
    "letters": (picture(prompt="日本の猫 é\u2028e"), "euler", 0.0, False, "merged", SHA),
    "quoted": (picture(), "euler", 0.0, False, 'a, "b": 日本', SHA),
}
