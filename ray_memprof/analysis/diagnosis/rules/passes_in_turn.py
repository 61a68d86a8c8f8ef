"""All ranks run both passes of guidance, one after the other."""

from ray_memprof.analysis.diagnosis.row_text import Row, who
from ray_memprof.wording import size_text

ONLY_IF = "EXISTS (SELECT 1 FROM spans WHERE name = 'dit.forward' AND branch = 'uncond')"


def sentence(row: Row) -> str:
    """All ranks run both passes of guidance, one after the other."""
    passes = f"{who(row)} run both passes of guidance, one after the other"
    if row["ulysses"] * row["ring"] == 1:
        return f"{passes}, and all of them on all tokens: the same work is done {row['num_ranks']} times."
    return f"{passes}, and each hands {size_text(row['exchanged_bytes'])} to exchanges of tokens in a step."


def knob(row: Row) -> str:
    """One pass on each half of the ranks, a ring shortened before a Ulysses group, and what that costs."""
    ulysses, ring, half = row["ulysses"], row["ring"], row["num_ranks"] // 2
    if ulysses * ring == 1:
        split = f", with parallel.ulysses or parallel.ring: {half}" if half > 1 else ""
        return f"parallel.cfg: 2{split}"
    key, was = ("ring", ring) if ring % 2 == 0 else ("ulysses", ulysses)
    return (
        f"parallel.cfg: 2 with parallel.{key}: {was // 2}, which was {was}; a rank then works on twice as many tokens, "
        f"so its activations in a step ({size_text(row['activation_bytes'])}) about double"
    )
