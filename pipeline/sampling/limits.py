"""How many steps a sampler can make. Imports nothing: settings are checked by it."""


def most_steps(sampler: str, zero_terminal_snr: bool) -> int:
    """The most of a schedule of 1000 timesteps; one is the least."""
    if zero_terminal_snr or sampler == "dpmpp_2m_karras":
        return 1000
    return 998 if sampler in ("dpmpp_2m", "unipc") else 999
