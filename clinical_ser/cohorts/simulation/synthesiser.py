"""Speak phrases with Praat's built-in synthesiser and write the samples to standard output; run as a program in a process of its own.

The synthesiser (eSpeak NG) keeps state: what a process said before changes the first phrase of a list (17,911 samples where it had 17,719).
A fresh process that speaks a fixed list gives the same samples every time, so this file imports nothing of the package and runs once a voice.

Input (standard input, JSON): {"language": ..., "variant": ..., "words_per_minute": ..., "sample_rate_hz": ..., "phrases": [...]}.
Output: an .npz archive with float32 arrays `0`, `1`, ... in the order of the phrases.
"""

import io
import json
import sys

import numpy as np
from parselmouth.praat import call


def speak(request: dict[str, object]) -> bytes:
    """Return the phrases as the bytes of an .npz archive."""
    voice = call("Create SpeechSynthesizer", request["language"], request["variant"])
    # Sampling frequency, gap between words (s), pitch multiplier, pitch range multiplier, words per minute, phoneme alphabet.
    call(voice, "Speech output settings...", request["sample_rate_hz"], 0.0, 1.0, 1.0, request["words_per_minute"], "IPA")
    phrases = request["phrases"]
    assert isinstance(phrases, list)
    spoken = {str(k): call(voice, "To Sound", text, "no")[0].values[0].astype(np.float32) for k, text in enumerate(phrases)}
    archive = io.BytesIO()
    np.savez(archive, **spoken)
    return archive.getvalue()


if __name__ == "__main__":
    sys.stdout.buffer.write(speak(json.load(sys.stdin.buffer)))
