"""Commands, code, tables and links of README and docs work as printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.cli import OF_OUR_OWN, main
from recipes.cli.catalogue import config_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = [path.read_text() for path in sorted((ROOT / "docs" / "guide").glob("*.md"))]
DESIGN = (ROOT / "docs" / "design.md").read_text()
PLACES = re.findall(r"`([a-z_/]+\.py)`: ((?:`\w+`(?:, )?)+)", DESIGN)
BLOCKS = re.findall(r"(<!-- needs: a run -->\n)?```python\n(.*?)```", README, re.S)
OF_GUIDE = re.findall(r"(<!-- needs: a run -->\n)```python\n(.*?)```", "\n".join(GUIDE), re.S)
COMMANDS = re.findall(r"^    (recipes [^#\n]*)", "\n".join([README, *GUIDE]), re.M)
RUN = re.compile(r"runs/[a-z-]+/<time>")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    args = ["--trainer.max_epochs", "1", "--model.encoder.widths", "[4]", "--runs", str(folder), "--probe.draws", "1"]
    main(["fit", "--config", "simclr-digits", "--data.batch_size", "512", *args])
    (directory,) = folder.glob("*/*")
    return directory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("needs_run", "code"), [*BLOCKS, *OF_GUIDE])
def test_python_of_readme_and_guide_runs_as_printed(needs_run, code, run):
    exec(compile(RUN.sub(str(run), code) if needs_run else code, "README.md", "exec"), {})


def test_readme_has_python_to_run():
    assert len(BLOCKS) == 2
    assert len(OF_GUIDE) == 1
    assert len(BLOCKS[0][1].strip().split("seed_everything(0)\n")[1].splitlines()) <= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_command_in_readme_or_guide_is_understood(command, run, capsys):
    args = shlex.split(RUN.sub(str(run), command))[1:]
    if args[0] == "list":
        main(args)
        return
    if args[0] in OF_OUR_OWN:  # their options are tested with them; here, that README names some that there are
        with pytest.raises(SystemExit) as stopped:
            main([args[0], "--help"])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in args if option.startswith("--") and "." not in option)
        return
    if "predict" in args and "--data.root" in args:  # the run at hand is not of pictures
        args[args.index("--data.root") : args.index("--data.root")] = ["--data", "ImageFolder"]
    if "advice.yaml" in args:
        Path("advice.yaml").write_text(config_file("supervised-digits").read_text())
    with pytest.raises(SystemExit) as stopped:  # what shows help or the configuration ends there
        main(args if "--model.help" in args else [*args, "--print_config"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out


@pytest.mark.slow
def test_tables_are_those_of_the_results():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "reproduce", "tables", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKS = [
    (str(page.relative_to(ROOT)), link)
    for page in PAGES
    for link in re.findall(r"\]\(((?!http)[^)\s]+)", page.read_text())
]


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_to_a_file_and_a_heading(page, link):
    file, _, anchor = link.partition("#")
    target = ((ROOT / page).parent / file) if file else ROOT / page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


def test_the_guide_lists_each_of_its_pages():
    index = (ROOT / "docs" / "guide.md").read_text()
    assert all(f"(guide/{page.name})" in index for page in (ROOT / "docs" / "guide").glob("*.md"))


@pytest.mark.parametrize(("file", "names"), PLACES)
def test_the_life_of_a_run_names_what_is_there(file, names):
    text = (ROOT / file).read_text()
    assert all(re.search(rf"^\s*(class |def )?{name}\b", text, re.M) for name in re.findall(r"`(\w+)`", names))


def test_the_map_has_every_folder_of_recipes():
    rooms = {path.parent.name for path in (ROOT / "recipes").glob("*/__init__.py")}
    assert all(f"`recipes/{room}/`" in DESIGN or f"`{room}`" in DESIGN for room in rooms)
