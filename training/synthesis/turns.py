"""Questions and answers to a conversation in memory, as training/synthesis/samples.py makes them, of any number of turns."""

from training.synthesis.samples import said

Parts = list[tuple[str, object]]  # ("text", str), ("image", PIL image), ("audio", float32 samples), ("video", frames)


def conversation(turns: list[tuple[Parts, str]], **meta) -> dict:
    """A sample of (what the user shows and says, the assistant's answer) turns; media in order of appearance."""
    messages, media = [], {"image": [], "audio": [], "video": []}
    for parts, answer in turns:
        content = [{"type": kind, "text": value} if kind == "text" else {"type": kind} for kind, value in parts]
        messages += [{"role": "user", "content": content}, said(answer)]
        for kind, value in parts:
            if kind != "text":
                media[kind].append(value)
    return {"messages": messages, **{f"{kind}s": values for kind, values in media.items()}, "meta": meta}


def about(medium: tuple[str, object], turns: list[tuple[str, str]], **meta) -> dict:
    """A conversation about one medium, which the first question shows."""
    (question, answer), *others = turns
    first = ([medium, ("text", question)], answer)
    return conversation([first, *(([("text", question)], answer) for question, answer in others)], **meta)
