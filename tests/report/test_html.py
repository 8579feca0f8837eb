"""The page of a run: whole, safe, and right about its numbers."""

import json

import numpy as np

from spectral_mlops.report.html import embed

HOSTILE = "</script><script>alert(1)</script>&\"'<img src=x onerror=alert(2)>"


def test_embedded_data_come_back_and_cannot_end_the_script():
    data = {
        HOSTILE: [np.float32(0.5), np.nan, -np.inf, np.int64(3), None, True],
        "array": np.array([[1.0, np.nan]]),
        "line ends": "\u2028",
    }
    text = embed(data)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {
        HOSTILE: [0.5, None, None, 3, None, True],
        "array": [[1.0, None]],
        "line ends": "\u2028",
    }
