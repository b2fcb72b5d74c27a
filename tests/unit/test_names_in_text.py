"""Names that stand in texts: only where something reads them there."""

from __future__ import annotations

import types

import pytest

from ice_notebook.values.names_in_text import names_in_texts

TABLE = type("Table", (), {"__module__": "pandas.core.frame"})()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("df.query('a > @limit')", ["limit"]),
        ("df.eval('a + @limit')", ["limit"]),
        ("eval('limit + other.x')", ["limit", "other"]),
        ("exec('limit = 1\\nprint(other)')", ["limit", "other"]),
        ("eval(f'{x} + limit')", ["limit"]),
        ("con.sql('select sum(a) from table join log on 1')", ["table"]),
        ("con.execute('SELECT * FROM table')", ["table"]),
        ("con.sql('select * from table.b, read_csv(limit)')", []),
        ("get_ipython().system('echo {limit + 1} $other {a: b}')", ["limit", "other"]),
        ("get_ipython().run_line_magic('time', 'limit + 1')", ["limit"]),
        ("get_ipython().run_line_magic('cd', 'log')", []),
        ("globals()['limit']", ["limit"]),
        ("print('the limit of the log, from table')", []),
        ("log.info('limit'); df.query('a > 1')", []),
    ],
)
def test_names_are_found_where_texts_are_read(source, names):
    variables = {"limit": 1, "other": 2, "table": TABLE, "log": types.SimpleNamespace()}
    inner = source.replace("\n", "\n        ")
    for code in (compile(source, "cell", "exec"), compile(f"def f():\n    def g():\n        {inner}", "cell", "exec")):
        assert sorted(dict.fromkeys(names_in_texts(code, variables))) == names
