"""Laws about what a person sees: the rendered page, and "Run all" in JupyterLab, in a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from attrobust import paths
from attrobust.notebook import reproduce
from by_day import due
from trees import contents, copy_tree

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.parametrize("path", reproduce.numbered(), ids=lambda path: path.stem)
def test_the_rendered_page_shows_every_figure_whole(browser, tmp_path, path):
    tree = copy_tree(tmp_path)
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--HTMLExporter.mathjax_url="]
    command += ["--HTMLExporter.require_js_url=", "--HTMLExporter.jquery_url=", str(tree / "notebooks" / path.name)]
    subprocess.run(command, check=True, capture_output=True)
    browser.get((tree / "notebooks" / f"{path.stem}.html").as_uri())
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.alt, i.getBoundingClientRect().right])"
    )
    figures = list((paths.figures / path.stem).glob("*.png"))
    assert len(pictures) == len(figures) + 1  # and the main picture under the answer
    for natural, alt, right in pictures:
        assert natural > 300
        assert len(alt) > 30
        assert right <= 1200
    assert (
        browser.execute_script("return document.querySelectorAll('.jp-RenderedText[data-mime-type*=stderr]').length")
        == 0
    )


@pytest.fixture
def slider(browser, tmp_path):
    """The page with the slider from a folder, in the least of pages, and what the browser shows of it."""
    shutil.copytree(paths.root / "docs" / "slider", tmp_path / "slider")
    text = (paths.root / "docs" / "slider.md").read_text()
    raw = text.split("```{raw} html\n")[1].split("```")[0]
    page = tmp_path / "slider.html"
    page.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>slider</title><body>{raw}</body></html>")
    browser.get_log("browser")  # what earlier pages said
    browser.get(page.as_uri())
    script = """
        const whole = [...document.images].every(i => i.complete && i.naturalWidth > 0);
        const shown = [...document.images].map(i => {
            const [cell, own] = [i.parentElement, i].map(one => one.getBoundingClientRect());
            const [width, height] = [i.parentElement.clientWidth, i.parentElement.clientHeight];
            return [i.alt, (cell.left - own.left) / width, (cell.top - own.top) / height];
        });
        return {whole, shown, said: document.getElementById("walk-said").textContent,
                radius: document.getElementById("walk-radius").getAttribute("aria-valuetext"),
                rows: document.querySelectorAll("#walk-table tr").length};
    """

    def look():
        until = time.monotonic() + 30
        while not (seen := browser.execute_script(script))["whole"] and time.monotonic() < until:
            time.sleep(0.1)
        return seen

    return look


def test_the_slider_moves_by_the_keyboard_and_tells_what_it_shows(browser, slider):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select
    from slider.subjects import SUBJECTS

    clean = slider()
    assert clean["whole"]
    assert "Radius 0/255" in clean["said"]
    assert "100 % of the" in clean["said"]
    asked = {name: browser.find_element(By.ID, f"walk-{name}") for name in ("picture", "map", "radius")}
    assert [asked[name].accessible_name for name in asked] == ["Picture", "Map", "Radius of the attack"]
    for name, kind in SUBJECTS.items():
        Select(asked["picture"]).select_by_value(name)
        asked["radius"].send_keys(Keys.HOME)
        for row in range(len(kind.maps)):
            Select(asked["map"]).select_by_index(row)
            before = slider()
            asked["radius"].send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
            after = slider()
            levels = kind.radii[2]
            assert before["whole"]
            assert after["whole"]
            assert f"Radius {levels}/255" in after["said"]
            assert after["radius"] == f"{levels} of 255 grey levels"
            assert f"{levels} of 255 grey levels" in after["shown"][0][0]
            places = [(2, row), (2, 2 * row), (2, 2 * row + 1)]  # in their sheets, of pictures and of maps
            for (alt, column, line), place in zip(after["shown"], places, strict=True):
                assert len(alt) > 30
                assert (column, line) == pytest.approx(place, abs=0.05)
            assert before["shown"] != after["shown"]
            assert after["rows"] == len(kind.radii) + 1
            asked["radius"].send_keys(Keys.HOME)
    assert browser.find_element(By.ID, "walk-said").get_attribute("aria-live") == "polite"
    assert browser.get_log("browser") == []


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab server over a copy of the tree."""
    tree = copy_tree(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += ["--IdentityProvider.token=", "--expose-app-in-browser", "--notebook-dir", str(tree / "notebooks")]
    environment = os.environ | {"PYTHONPATH": str(tree / "lib"), "ATTROBUST_DATA": str(tree / "nothing")}
    environment |= {"JUPYTER_CONFIG_DIR": str(tree / "config"), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    with (tree / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2).close()
            break
        except OSError:
            time.sleep(0.3)
    yield f"http://127.0.0.1:{port}", tree
    # A server takes leave of its kernels first, for which a busy machine has needed more than 20 seconds.
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize("slot", range(2))
@pytest.mark.timeout(1800)
def test_run_all_in_jupyterlab_takes_seconds_and_changes_no_evidence(browser, lab, slot):
    """A notebook a slot and day; all with `EVERY=1`."""
    for path in due(reproduce.numbered(), slot, 2):
        runs_through(browser, *lab, path)


def runs_through(browser, address, tree, path):
    before = contents(tree / "figures")
    browser.get(f"{address}/lab/tree/{path.name}")
    browser.set_script_timeout(200)
    wait = """
        const done = arguments[0], until = Date.now() + 180000;
        const ready = () => window.jupyterapp && jupyterapp.shell.currentWidget
            && jupyterapp.shell.currentWidget.sessionContext && jupyterapp.shell.currentWidget.sessionContext.session
            && jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        const loop = async () => {
            while (!ready() && Date.now() < until) await new Promise(r => setTimeout(r, 200));
            await jupyterapp.shell.currentWidget.context.ready;
            const began = Date.now();
            await jupyterapp.commands.execute('notebook:restart-run-all', {activate: false}).catch(() => null);
            done((Date.now() - began) / 1000);
        };
        loop();
    """.replace("notebook:restart-run-all", "notebook:run-all-cells")
    seconds = browser.execute_async_script(wait)
    cells = browser.execute_script(
        "return jupyterapp.shell.currentWidget.model.sharedModel.toJSON().cells.filter(c => c.cell_type == 'code')"
        ".map(c => [c.execution_count, c.outputs.map(o => o.output_type + (o.name || ''))])"
    )
    assert [count for count, _ in cells] == list(range(1, len(cells) + 1)), path.stem
    kinds = {kind for _, outputs in cells for kind in outputs}
    assert not any("error" in kind or "stderr" in kind for kind in kinds), (path.stem, kinds)
    assert seconds < 60, path.stem
    assert contents(tree / "figures") == before
