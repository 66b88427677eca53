"""Makes autograder.zip for Gradescope: python tests/gradescope/make_zip.py [autograder.zip]

In it are setup.sh and run_autograder, and under course/ what grading needs."""

import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def main(target):
    wanted = [ROOT / name for name in ("requirements.txt", "tests/grade.py", "tests/points.json",
                                       "tests/kinds.json", "tests/grading/pytest.ini")]
    for folder in "answers", "tests/checks", "tests/worker", "tests/grading":
        wanted += sorted((ROOT / folder).glob("*.py"))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "setup.sh", "run_autograder":
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, (HERE / name).read_bytes())
        for path in wanted:
            archive.write(path, Path("course") / path.relative_to(ROOT))
    print(f"wrote {target}: upload it to Gradescope as the autograder")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "autograder.zip")
