"""What detection is made of, as plain loops in float64: written from the definitions, for tests."""

import math

import numpy as np


def iou(a, b):
    """Of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union if union > 0 else 0.0


def greedy(boxes, scores, threshold, classes=None, valid=None):
    """Numbers of the kept boxes, by falling score."""
    boxes = np.asarray(boxes, np.float64)
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if valid is not None and not valid[i]:
            continue
        rivals = [k for k in kept if classes is None or classes[k] == classes[i]]
        if all(iou(boxes[i], boxes[k]) <= threshold for k in rivals):
            kept.append(i)
    return kept


def _samples(low, high, bins, ratio):
    step = (high - low) / bins
    count = ratio or math.ceil(step)
    return [[low + (p + (i + 0.5) / count) * step for i in range(count)] for p in range(bins)]


def _weights(at, size):
    """Pixel -> weight of a sample along an axis."""
    if not -1 <= at <= size:
        return {}
    at = min(max(at, 0.0), size - 1.0)
    low = int(at)
    found = {low: 1 - (at - low)}
    found[min(low + 1, size - 1)] = found.get(min(low + 1, size - 1), 0.0) + (at - low)
    return found


def aligned_rows(features, box, output_size, scale, ratio, aligned):
    """RoIAlign of one box on one map [h, w, c]: [ph, pw, c], and for each bin its pixels' weights
    as {(y, x): weight}.
    """
    features = np.asarray(features, np.float64)
    shift = 0.5 if aligned else 0.0
    x0, y0, x1, y1 = (float(side) * scale - shift for side in box)
    if not aligned:
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    rows = _samples(y0, y1, output_size[0], ratio)
    columns = _samples(x0, x1, output_size[1], ratio)
    result = np.zeros((*output_size, features.shape[-1]))
    weights = {}
    for p, ys in enumerate(rows):
        for q, xs in enumerate(columns):
            bin_weights = weights.setdefault((p, q), {})
            count = max(len(ys) * len(xs), 1)
            for y in ys:
                for x in xs:
                    for i, row_weight in _weights(y, features.shape[0]).items():
                        for j, column_weight in _weights(x, features.shape[1]).items():
                            weight = row_weight * column_weight / count
                            bin_weights[i, j] = bin_weights.get((i, j), 0.0) + weight
                            result[p, q] += weight * features[i, j]
    return result, weights


def roi_align(features, boxes, output_size, scale, ratio=2, aligned=True, cotangent=None):
    """RoIAlign of boxes [b, r, 4] on maps [b, h, w, c], and the maps' gradient for a cotangent."""
    gradient = np.zeros(np.shape(features))
    result = []
    for image, (own_map, own) in enumerate(zip(features, boxes, strict=True)):
        rows = []
        for number, box in enumerate(own):
            found, weights = aligned_rows(own_map, box, output_size, scale, ratio, aligned)
            rows.append(found)
            if cotangent is not None:
                for (p, q), pixels in weights.items():
                    for (i, j), weight in pixels.items():
                        gradient[image, i, j] += weight * cotangent[image, number, p, q]
        result.append(rows)
    return np.asarray(result), gradient
