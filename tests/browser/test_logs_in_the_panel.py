"""What a person does with the output of a run: choose ranks, search, go back in it, take it along. Played runs, in JupyterLab."""

from __future__ import annotations

import re

import pytest
from harness import wait_until

pytestmark = pytest.mark.browser

RUN = "run = show({script}, plan=make_plan({n}), waits=False, keeps_files=True)"


def cell(n: int, *script: str) -> str:
    return RUN.format(n=n, script=", ".join([f"*now(begun({n}))", *script]))


@pytest.fixture
def panel(desk):
    """`panel(n, *script)`: a page on which such a run is shown, and its panel."""

    def open_panel(n: int, *script: str):
        page = desk(cell(n, *script), "run.panel")
        page.run_cell(0)
        shown = page.output(0).locator(".ice")
        shown.wait_for()
        return page, shown

    return open_panel


def rows(shown, i: int = 0):
    return shown.locator(".ice-pane").nth(i).locator(".ice-rows > div")


def chip(shown, rank: int):
    return shown.locator(".ice-rank").nth(rank)


def heads(shown):
    return shown.locator(".ice-pane .ice-head").all_inner_texts()


def test_a_chip_shows_device_state_last_line_and_bar(panel):
    _, shown = panel(
        3,
        "out(0, 'first\\nloss 0.5\\n')",
        "out(1, '\\r 10%|#         | 1/10\\r 40%|####      | 4/10')",
        "{2: [['epoch', 1, 4], ['step', 50, 100]]}",
        "out(2, 'words\\n')",
    )
    chip(shown, 0).get_by_text("loss 0.5").wait_for()
    assert re.sub(r"\s+", " ", chip(shown, 0).inner_text()).lower() == "rank 0 cpu:0 running loss 0.5"
    chip(shown, 1).get_by_text("4/10").wait_for()
    chip(shown, 2).get_by_text("epoch: 1/4 · step: 50/100 · 37 %").wait_for()
    widths = [chip(shown, rank).locator(".ice-bar").evaluate("(node) => node.hidden ? '' : node.style.width") for rank in range(3)]
    assert widths == ["", "40%", "37.5%"]


def test_chips_choose_whose_output_is_shown(panel):
    _, shown = panel(3, *[f"out({rank}, 'rank {rank} speaks\\n')" for rank in range(3)])
    shown.get_by_text("rank 2 speaks").first.wait_for()
    assert [head[:6] for head in heads(shown)] == ["rank 0", "rank 1", "rank 2"]
    chip(shown, 2).click()
    shown.locator(".ice-pane").nth(1).wait_for(state="detached")
    assert chip(shown, 2).get_attribute("aria-pressed") == "true"
    assert rows(shown).all_inner_texts() == ["rank 2 speaks"]
    chip(shown, 0).click()
    shown.locator(".ice-pane").nth(1).wait_for()
    assert [head[:6] for head in heads(shown)] == ["rank 0", "rank 2"]
    chip(shown, 1).dblclick()
    shown.locator(".ice-pane").nth(1).wait_for(state="detached")
    assert rows(shown).all_inner_texts() == ["rank 1 speaks"]
    chip(shown, 1).click()
    shown.locator(".ice-pane").nth(2).wait_for()


def test_many_ranks_are_one_list_in_the_order_of_their_words(panel):
    _, shown = panel(5, "out(3, 'first\\n')", "0.3", "out(1, 'second\\n')", "0.3", "out(3, 'third\\n')")
    shown.get_by_text("third").first.wait_for()
    assert [text.replace("\n", "") for text in rows(shown).all_inner_texts()] == ["3first", "1second", "3third"]
    shown.get_by_role("button", name="Show a pane for each rank").click()
    shown.locator(".ice-pane").nth(4).wait_for()
    shown.get_by_role("button", name="Show all ranks in one list").click()
    shown.locator(".ice-pane").nth(4).wait_for(state="detached")
    assert shown.get_by_role("button", name="Show all ranks in one list").get_attribute("aria-pressed") == "true"


def test_a_search_marks_counts_and_goes_from_hit_to_hit(panel):
    page, shown = panel(
        2, *[f"out({i % 2}, ''.join(f'step {{i}} {{\"LOSS\" if i % 50 == 7 else \"\"}}\\n' for i in range(150)))" for i in range(2)]
    )
    shown.get_by_text("step 149").first.wait_for()
    search = shown.get_by_role("searchbox", name="Search the output")
    search.click()
    page.page.keyboard.type("loss")
    shown.get_by_text("6 hits", exact=True).wait_for()
    search.press("Enter")
    shown.get_by_text("1/6 hits", exact=True).wait_for()
    rows(shown).get_by_text("step 7 LOSS").wait_for()
    assert shown.locator("mark").first.inner_text() == "LOSS"
    for _ in range(3):
        search.press("Enter")
    shown.get_by_text("4/6 hits", exact=True).wait_for()
    rows(shown, 1).get_by_text("step 7 LOSS").wait_for()
    search.press("Shift+Enter")
    shown.get_by_text("3/6 hits", exact=True).wait_for()
    rows(shown).get_by_text("step 107 LOSS").wait_for()
    for _ in "loss":
        search.press("Backspace")
    shown.locator("mark").first.wait_for(state="detached")


def test_what_was_skipped_is_read_back_by_a_click(panel):
    page, shown = panel(1, "out(0, ''.join(f'line {i}\\n' for i in range(3000)))")
    shown.get_by_text("line 2999").first.wait_for()
    shown.locator(".ice-scroll").evaluate("(node) => { node.dispatchEvent(new WheelEvent('wheel')); node.scrollTop = 0 }")
    gap = shown.get_by_role("button", name=re.compile(r"… [\d\s]+ lines not shown: read them"))
    gap.wait_for()
    n = 0
    # How many are missing at first depends on what the page was given when it said hello.
    while before := gap.all_inner_texts():
        gap.click()
        wait_until(lambda before=before: gap.all_inner_texts() != before, page=page)
        n += 1
    rows(shown).get_by_text("line 0", exact=True).wait_for()
    assert 1 <= n <= 3


def test_the_whole_files_are_searched_and_a_hit_leads_to_its_place(panel):
    _, shown = panel(
        2,
        "out(0, ''.join(f'line {i}\\n' for i in range(100)))",
        "1",  # the page has these, and then a gap
        "out(0, ''.join(f'line {i}\\n' for i in range(100, 8000)))",
        "out(1, 'a line 1234 elsewhere\\n')",
    )
    shown.get_by_text("line 7999").first.wait_for()
    shown.get_by_role("searchbox").fill("line 1234")
    shown.get_by_role("button", name="Search the whole log files").click()
    shown.get_by_text("2 lines in the files", exact=True).wait_for()
    assert [text.replace("\n", "") for text in rows(shown).all_inner_texts()] == ["0line 1234", "1a line 1234 elsewhere"]
    rows(shown).first.click()
    rows(shown).get_by_text("line 1234", exact=True).wait_for()
    rows(shown).get_by_text("line 1240", exact=True).wait_for()
    assert [head[:6] for head in heads(shown)] == ["rank 0"]


def test_what_was_skipped_is_a_row_of_the_merged_list_as_well(panel):
    _, shown = panel(
        2,
        "out(0, ''.join(f'line {i}\\n' for i in range(100)))",
        "1",
        "out(0, ''.join(f'line {i}\\n' for i in range(100, 8000)))",
    )
    shown.get_by_text("line 7999").first.wait_for()
    shown.get_by_role("button", name="merged").click()
    scroller = shown.locator(".ice-scroll")
    scroller.evaluate("(node) => { node.dispatchEvent(new WheelEvent('wheel')); node.scrollTop = 95 * 16 }")
    gap = shown.get_by_role("button", name=re.compile("not shown: read them"))
    gap.wait_for()
    gap.click()
    rows(shown).get_by_text(re.compile(r"line (6|7)\d\d\d$")).first.wait_for()


def test_the_output_of_one_attempt_can_be_chosen(panel):
    _, shown = panel(
        2,
        "out(0, 'of the first\\n')",
        "0.2",
        "*now(failed(2, restarting=True))",
        "*now(begun(2, attempt=1))",
        "out(0, 'of the second\\n', 1)",
    )
    shown.get_by_text("of the second").first.wait_for()
    assert "Attempt 2: rank 1 (cpu:1) left after" in shown.inner_text()
    assert rows(shown).all_inner_texts() == ["of the first", "attempt 2", "of the second"]
    attempts = shown.get_by_role("combobox", name="Attempt whose output is shown")
    attempts.select_option(label="attempt 1")
    shown.locator(".ice-rank").get_by_text("of the second").wait_for()
    assert rows(shown).all_inner_texts() == ["of the first"]
    attempts.select_option(label="attempt 2")
    rows(shown).get_by_text("of the second").wait_for()
    assert rows(shown).all_inner_texts() == ["of the second"]
    attempts.select_option(label="all attempts")
    rows(shown).get_by_text("of the first").wait_for()


def test_output_is_copied_and_logs_are_downloaded(panel, tmp_path):
    page, shown = panel(2, "out(0, 'plain \\x1b[31mred\\x1b[0m\\n')", "out(1, 'other\\n')")
    shown.get_by_text("other").first.wait_for()
    page.page.context.grant_permissions(["clipboard-read"])
    shown.get_by_role("button", name="Copy the output that is shown").click()
    shown.get_by_text("Copied 2 lines.").wait_for()
    assert page.page.evaluate("() => navigator.clipboard.readText()") == "plain red\nother\n"
    chip(shown, 0).click()
    with page.page.expect_download() as download:
        shown.get_by_role("button", name=re.compile("Download the log files")).click()
    download.value.save_as(tmp_path / "log")
    assert download.value.suggested_filename == "attempt_0-rank_0.log"
    assert (tmp_path / "log").read_bytes() == b"plain \x1b[31mred\x1b[0m\r\n"


def test_addresses_and_files_of_the_server_are_links(panel):
    page, shown = panel(1, "out(0, 'see https://example.org/a_(b).html, and File \"/elsewhere/x.py\", line 3\\n')")
    link = shown.locator(".ice-rows a")
    link.wait_for()
    assert (link.inner_text(), link.get_attribute("target"), link.get_attribute("rel")) == (
        "https://example.org/a_(b).html",
        "_blank",
        "noopener",
    )
    where = page.value("__import__('os').getcwd()")
    page.put_cells(cell(1, f"out(0, 'File \"{where}/my model.py\", line 3, in f\\n')"))
    page.run_cell(0)
    link = page.output(0).locator(".ice-rows a")
    link.wait_for()
    assert link.inner_text() == f'File "{where}/my model.py", line 3'
    assert link.get_attribute("href").endswith("/lab/tree/my%20model.py")


def test_what_is_chosen_in_a_view_stays_in_it_and_survives_it(panel):
    page, shown = panel(3, *[f"out({rank}, 'rank {rank} speaks\\n')" for rank in range(3)])
    page.run_cell(1)
    second = page.output(1).locator(".ice")
    second.get_by_text("rank 2 speaks").first.wait_for()
    chip(second, 1).click()
    second.get_by_role("searchbox").fill("speaks")
    second.get_by_text("1 hit", exact=True).wait_for()
    assert len(heads(shown)) == 3
    assert shown.get_by_role("searchbox").input_value() == ""
    page.run_cell(1)  # its view is taken down, and another one made
    page.output(1).get_by_text("1 hit", exact=True).wait_for()
    assert [head[:6] for head in heads(page.output(1).locator(".ice"))] == ["rank 1"]
    assert len(heads(shown)) == 3
