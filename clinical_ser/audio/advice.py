"""What to tell the person who made the recording: one plain sentence a check, in English and Chinese."""

from collections.abc import Mapping
from types import MappingProxyType

ADVICE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "speech": ("Record at least {limit:g} s of speech.", "请录制至少 {limit:g} 秒的讲话。"),
        "no_speech": (
            "No speech was found: check that the microphone is on, and speak in a normal voice.",
            "未检测到讲话：请确认麦克风已打开，并用正常的声音说话。",
        ),
        "voicing": (
            "The voice could hardly be made out: speak in a normal voice, without whispering, close to the microphone.",
            "难以辨认嗓音：请靠近麦克风，用正常的声音说话，不要耳语。",
        ),
        "snr": (
            "There is too much background noise: record in a quiet room, close to the microphone.",
            "背景噪声过大：请在安静的房间里靠近麦克风录音。",
        ),
        "noise_unknown": (
            "The background noise could not be measured: leave one second of silence before and after speaking.",
            "无法测量背景噪声：请在说话前后各留一秒钟的安静。",
        ),
        "clipping": (
            "The recording is too loud and distorted: move away from the microphone or turn its level down.",
            "录音过响而失真：请离麦克风远一些，或调低录音音量。",
        ),
        "bandwidth": (
            "High tones are missing: record with the device itself, not over a telephone line or a headset in call mode.",
            "录音缺少高频：请直接用设备录音，不要通过电话线路或通话模式的耳机录音。",
        ),
        "level": (
            "The recording is too quiet: move closer to the microphone or turn its level up.",
            "录音太轻：请靠近麦克风，或调高录音音量。",
        ),
        "codec": (
            "The file is strongly compressed: record as WAV or FLAC, or as MP3 at more than 64 kbit/s.",
            "文件压缩过度：请用 WAV 或 FLAC 格式录音，或使用高于 64 kbit/s 的 MP3。",
        ),
        "speakers": (
            "There may be two voices: make sure that only one person is heard, and confirm who is speaking.",
            "录音中可能有两个人的声音：请确保只有一个人说话，并确认说话人身份。",
        ),
        "samples": (
            "Parts of the recording are invalid and were left out: export or record it again.",
            "录音的部分数据无效，已被忽略：请重新导出或重新录音。",
        ),
        "offset": (
            "The recording device adds a constant offset, which was removed: try another microphone or input.",
            "录音设备带有直流偏移（已去除）：请换用其他麦克风或输入接口。",
        ),
        "complete": (
            "The file is damaged or ends early, and only a part could be read: transfer it again or record again.",
            "文件已损坏或不完整，只能读取一部分：请重新传输或重新录音。",
        ),
    }
)
"""English and Chinese by check name, or by the special case of one; `{limit}` is the check's warn limit."""


def advice(name: str, limit: float | None) -> tuple[str, str]:
    """Return the English and the Chinese sentence."""
    english, chinese = ADVICE[name]
    return english.format(limit=limit), chinese.format(limit=limit)
