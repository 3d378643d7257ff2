"""AudioCaps: the five captions of a clip brought together, and CIDEr as papers print it."""

from eval.metrics.cider.cider import cider


def one_row_a_clip(rows):
    """The first row of each clip, with all its captions in a column `captions` instead of its own."""
    clips = {}
    for index, clip in enumerate(zip(rows["youtube_id"], rows["start_time"], strict=True)):
        clips.setdefault(clip, []).append(index)
    captions = rows["caption"][:]
    first = rows.select([indices[0] for indices in clips.values()]).remove_columns("caption")
    return first.add_column("captions", [[captions[index] for index in indices] for indices in clips.values()])


def score(doc, results):
    return {"cider": {"caption": results[0], "references": doc["captions"]}}


def cider_of_each(items):
    """CIDEr x 100 of each item, its words weighed by how rare they are in all items' references."""
    scores = cider([item["caption"] for item in items], [item["references"] for item in items])
    return [100 * score for score in scores]
