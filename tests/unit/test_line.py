"""The line of a magic: words, values, options, completion."""

from contextlib import suppress
from types import SimpleNamespace

import pytest

from ice_notebook.errors import DeviceError, IceNotebookError, OptionError
from ice_notebook.options import launch_options as lo
from ice_notebook.options.launch_options import TABLE
from ice_notebook.options.line import (
    CLOSING,
    asks_for_help,
    complete_line,
    read_command,
    read_environment,
    read_launch_line,
    read_line,
    split_words,
    wants_help,
)
from ice_notebook.options.table import Surface

NOTEBOOK = {
    "picker": SimpleNamespace(devices="cuda:1,3"),
    "gpus": [0, 2],
    "n": 3,
    "model": object(),
    "run1": "expr",
    "settings": {"A": "1"},
    "spawn": "a variable of the same name as a word",
    "trainer": "a variable whose name is free text",
}


def read(line, surface=Surface.CELL):
    values = read_line(line, TABLE, NOTEBOOK, surface)
    return {name: str(value) if name == "devices" else value for name, value in values.items()}


def refusal(line, kind=OptionError, surface=Surface.CELL):
    with pytest.raises(kind) as caught:
        read_line(line, TABLE, NOTEBOOK, surface)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  a  b\t c\n", ["a", "b", "c"]),
        ("args=(1, 'a b')", ["args=(1, 'a b')"]),
        ("kwargs={'a': [1, (2, 3)], 'b': '}'} x", ["kwargs={'a': [1, (2, 3)], 'b': '}'}", "x"]),
        ('args=("it\'s", 1) b', ['args=("it\'s", 1)', "b"]),
        (r"args=('it\'s', 1) b", [r"args=('it\'s', 1)", "b"]),
        ("log_dir='my logs'/a b", ["log_dir='my logs'/a", "b"]),
        ("args=make(1, 2)[0] b", ["args=make(1, 2)[0]", "b"]),
        ("a)b c", ["a)b", "c"]),
    ],
)
def test_quotes_and_brackets_run_to_their_partner(line, words):
    assert split_words(line) == words


@pytest.mark.parametrize("line", ["it's", "args=(1, 2", "args=(1, [2)", "role='a", r"role='a\'", "env={'a': '}", 'args=("'])
def test_a_quote_or_bracket_without_partner_is_refused(line):
    assert "close the quote or the bracket" in refusal(line)


@pytest.mark.parametrize("surface", [Surface.CELL, Surface.LINE])
@pytest.mark.parametrize("start", ["", "args=", "env=", "role=", "max_restarts="])
@pytest.mark.parametrize("bracket", ["(", "[{("])
def test_brackets_may_be_nested_as_deep_as_anybody_likes(start, bracket, surface):
    for depth in (500, 3_000):
        opened = bracket * depth
        begun = start + opened
        assert complete_line(begun, TABLE, {}, surface) == ("", [])
        with pytest.raises(OptionError) as caught:
            read_line(begun, TABLE, {}, surface)
        assert len(str(caught.value)) < 200
        whole = begun + "".join(CLOSING[character] for character in reversed(opened))
        complete_line(whole, TABLE, {}, surface)
        with suppress(IceNotebookError):  # free text may be just that
            read_launch_line(f"{whole} x.py", TABLE, {}, surface)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("", {}),
        ("devices=cuda:0,1 max_restarts=1 -o run", {"devices": "cuda:0,1", "max_restarts": 1, "output": "run"}),
        ("--devices cuda:0,1 --max-restarts 1", {"devices": "cuda:0,1", "max_restarts": 1}),
        ("--devices=cuda:0,1 --max_restarts=1", {"devices": "cuda:0,1", "max_restarts": 1}),
        ("nproc-per-node=2 --nproc-per-node", None),
        ("max-restarts=1", {"max_restarts": 1}),
        ("-r 3 -t 0:1,10:2", {"redirects": 3, "tee": {0: 1, 10: 2}}),
        ("-r3 -o=run", {"redirects": 3, "output": "run"}),
        ("background", {"background": True}),
        ("--background", {"background": True}),
        ("background=false", {"background": False}),
        ("--background max_restarts=1", {"background": True, "max_restarts": 1}),
        ("rdzv_conf=a=1,b=2", {"rdzv_configs": {"a": "1", "b": "2"}}),
        ("env=A=1", {"env": {"A": "1"}}),
        ("env=A=1 env=B=x=y", {"env": {"A": "1", "B": "x=y"}}),
        ("--env NCCL_DEBUG_SUBSYS=INIT,ENV", {"env": {"NCCL_DEBUG_SUBSYS": "INIT,ENV"}}),
        ("env={'A': 'x, y', 'B': n}", {"env": {"A": "x, y", "B": "3"}}),
        ("env={settings}", {"env": {"A": "1"}}),
        ("env=settings", {"env": {"A": "1"}}),
        ("env='A=a b'", {"env": {"A": "a b"}}),
        ("role='two words'", {"role": "two words"}),
        (r'role="a \"b\""', {"role": 'a "b"'}),
        ("log_dir=/data/'my logs'/x", {"log_dir": "/data/my logs/x"}),
        ("devices=picker", {"devices": "cuda:1,3"}),
        ("devices=gpus", {"devices": "cuda:0,2"}),
        ("devices={gpus[:1]}", {"devices": "cuda:0"}),
        ("devices=[0, 1]", {"devices": "cuda:0,1"}),
        ("devices='cuda:0'", {"devices": "cuda:0"}),
        ("devices=cuda:{n}", {"devices": "cuda:3"}),
        ("max_restarts=n", {"max_restarts": 3}),
        ("max_restarts={n + 1}", {"max_restarts": 4}),
        ("log_dir=logs/{run1}/{n}", {"log_dir": "logs/expr/3"}),
        ("log_dir='{run1}'", {"log_dir": "{run1}"}),
        ("start_method=spawn", {"start_method": "spawn"}),
        ("role=trainer", {"role": "trainer"}),
        ("args=(n, 'a b')", {"args": (3, "a b")}),
        ("args=n,4", {"args": (3, 4)}),
        ("args=[x * n for x in gpus]", {"args": (0, 6)}),
        ("kwargs=dict(lr=0.1, n=n)", {"kwargs": {"lr": 0.1, "n": 3}}),
        ("kwargs={'a': {'b': 1}}", {"kwargs": {"a": {"b": 1}}}),
        ("timeout=none", {"timeout": None}),
        ("master_addr=[::1]", {"master_addr": "[::1]"}),
        ("nnodes=1:1 redirects='0' tee=\"0\"", {"nnodes": (1, 1), "redirects": 0, "tee": 0}),
    ],
)
def test_a_line_is_read(line, values):
    if values is None:
        assert "needs a value" in refusal(line)
    else:
        assert read(line) == values


def test_an_argument_is_the_very_object_of_the_notebook():
    assert read("args=(model,)")["args"][0] is NOTEBOOK["model"]


def test_evaluating_leaves_the_namespace_as_it_was():
    before = dict(NOTEBOOK)
    read("args=(n,) max_restarts={n}")
    assert before == NOTEBOOK


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("devcies=cuda:0", "'devcies' is not an option. Did you mean 'devices'?"),
        ("--devcies cuda:0", "Did you mean 'devices'?"),
        ("-z 1", "'-z' is not an option."),
        ("devices", "'devices' needs a value: devices=VALUE, where VALUE is auto, cpu, cuda or a list"),
        ("devices =cuda", "'devices' needs a value"),
        ("--devices", "'devices' needs a value"),
        ("--max-restarts --background", "'max_restarts' needs a value"),
        (
            "cuda:0,1",
            "'cuda:0,1' is not an option: options are written as name=value or --name value, for example devices=cuda:0,1.",
        ),
        ("train", "'train' is not an option: options are written as name=value or --name value, for example devices=cuda:0,1."),
        ("background true", "'true' is not an option"),
        ("3=4", "'3=4' is not an option"),
        ("max_restarts=1 --max-restarts 2", "'max_restarts' is given twice; give it once."),
        ("env=A=1 env=A=2", "'env' is given twice"),
        ("background background", "'background' is given twice"),
        ("max_restarts=-1", "max_restarts='-1' is not valid: expected a whole number of 0 or more."),
        ("--max-restarts -1", "max_restarts='-1' is not valid"),
        ("max_restarts=tow", "No variable of this notebook is called 'tow' either."),
        ("max_restarts=model", "max_restarts=<object object at"),
        ("max_restarts=", "max_restarts='' is not valid"),
        ("timeout=0", "expected a number of seconds above 0."),
        ("args=(nn,)", "args=(nn,): the expression raised NameError"),
        ("args=(1", "close the quote or the bracket"),
        ("args=1+", "args=1+: the expression raised SyntaxError"),
        ("args=3", "args=3 is not valid: expected a tuple or list of the arguments"),
        ("args=", "the expression raised SyntaxError"),
        ("kwargs=[1]", "kwargs=[1] is not valid: expected a dict"),
        ("max_restarts={n/0}", "the expression raised ZeroDivisionError"),
        ("log_dir=a{nn}", "the expression raised NameError"),
        ("start_method=fork", "start_method='fork' is refused: forking a process with threads"),
        ("detach", "'detach' is not available in this version"),
        ("--detach", "'detach' is not available in this version"),
        ("-m package.module", "'module' is not an option here: it belongs to the command line and the magic of a line."),
        ("use_env=false", "'use_env' is not an option here: it belongs to the command line and the magic of a line."),
        ("nproc=2", "'nproc' is not an option. Did you mean 'nproc_per_node'?"),
        ("output=class", "output='class' is not valid: expected the name of a Python variable."),
        ("function=a.b", "function='a.b' is not valid"),
        ("rdzv_backend=etcd", "rdzv_backend='etcd' is refused: nodes meet without another service"),
    ],
)
def test_a_bad_line_gets_one_sentence(line, sentence):
    assert sentence in refusal(line)


def test_an_exception_of_an_expression_is_the_cause():
    with pytest.raises(OptionError) as caught:
        read_line("args=(nn,)", TABLE, NOTEBOOK, Surface.CELL)
    assert isinstance(caught.value.__cause__, NameError)


def test_a_misspelled_variable_is_suggested_and_the_kind_of_error_stays():
    message = refusal("devices=pickr", DeviceError)
    assert "'pickr' is not a device type" in message
    assert message.endswith("No variable of this notebook is called 'pickr' either. Did you mean 'picker'?")


def test_a_word_in_quotes_is_never_a_variable():
    assert "'picker' is not a device type" in refusal("devices='picker'", DeviceError)


def launched(line):
    """Return what a line says besides its options."""
    return read_launch_line(line, TABLE, NOTEBOOK, Surface.LINE)


@pytest.mark.parametrize(
    ("line", "options", "words"),
    [
        ("train.py", [], ["train.py"]),
        ("max_restarts=1 -r 3 train.py --lr 0.1 -m x=1", ["max_restarts", "redirects"], ["train.py", "--lr", "0.1", "-m", "x=1"]),
        (
            "--nproc-per-node 2 --nnodes=1 -m package.train -t 3",
            ["nproc_per_node", "nnodes", "module"],
            ["package.train", "-t", "3"],
        ),
        ("standalone --no_python echo hello", ["standalone", "no_python"], ["echo", "hello"]),
        ("--no-python env A=1 printenv A", ["no_python"], ["env", "A=1", "printenv", "A"]),  # env is the name of an option as well
        ("-- env", [], ["env"]),
        (
            "train.py {n} lr={n / 2} '{n}' \"a b\" {settings['A']} {run1}.x",
            [],
            ["train.py", "3", "lr=1.5", "{n}", "a b", "1", "expr.x"],
        ),
        ("{run1 + '.py'} [1, 2]", [], ["expr.py", "[1, 2]"]),
        ("max_restarts=1", ["max_restarts"], []),
    ],
)
def test_what_follows_the_options_of_a_line_is_launched_with_its_arguments(line, options, words):
    values, rest = launched(line)
    assert (list(values), rest) == (options, words)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train.py {nn}", "argument=nn: the expression raised NameError"),
        ("max_restart=1 train.py", "'max_restart' is not an option. Did you mean 'max_restarts'?"),
        ("numa_binding=node train.py", "'numa_binding' is not available in this version: ranks are not bound"),
        ("train.py it's", "close the quote or the bracket"),
    ],
)
def test_a_bad_line_with_a_script_gets_one_sentence(line, sentence):
    with pytest.raises(OptionError) as caught:
        launched(line)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        (["--nproc_per_node", "2", "train.py", "--nnodes=2"], {"nproc_per_node": 2}, ["train.py", "--nnodes=2"]),
        (["--nproc-per-node=2", "-r", "0:1,1:2", "-t3", "-m", "a.b", "{n}"], {"redirects": {0: 1, 1: 2}, "tee": 3}, ["a.b", "{n}"]),
        (["--rdzv-conf", "timeout=60,x=1", "t.py"], {"rdzv_configs": {"timeout": "60", "x": "1"}}, ["t.py"]),
        (["--use-env=True", "--standalone", "it's", "(a"], {"use_env": True, "standalone": True}, ["it's", "(a"]),
        (["--log_dir", "my logs", "standalone"], {"log_dir": "my logs"}, ["standalone"]),  # a word alone is no option in a terminal
        (["--", "max_restarts=1"], {}, ["max_restarts=1"]),
    ],
)
def test_the_words_of_a_shell_are_read_as_they_are(words, options, rest):
    values, found = read_command(words, TABLE)
    assert options.items() <= values.items()
    assert found == rest


def test_what_belongs_to_functions_is_no_option_of_a_command_line():
    with pytest.raises(
        OptionError, match="'args' is not an option here: it belongs to the magic of a cell and the magic of a line"
    ):
        read_command(["--args=(1,)", "train.py"], TABLE)
    with pytest.raises(OptionError, match="'max_restarts' needs a value"):
        read_command(["--max-restarts"], TABLE)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--nnode=1", "--nproc", "2"], {"nnodes": (1, 1), "nproc_per_node": 2}),
        (["--redirect=3", "--max_r", "1", "--log", "x"], None),  # log_dir or logs_specs, to torchrun too
        (["--redirect=3", "--max_r", "1", "--log-d", "x"], {"redirects": 3, "max_restarts": 1, "log_dir": "x"}),
        (
            ["--stand", "--rdzv-e", "a:1", "--rdzv-c", "x=1"],
            {"standalone": True, "rdzv_endpoint": "a:1", "rdzv_configs": {"x": "1"}},
        ),
        (["--t", "3", "--mod"], {"tee": 3, "module": True}),  # ours begin so too, torchrun's alone count
        (["--master_a", "a", "--master-p", "1", "--use"], {"master_addr": "a", "master_port": 1, "use_env": True}),
        (["--master", "a"], None),
        (["--shutdown-timeout", "7"], {"grace": 7.0}),
        (["--local_ranks_filter", "0, 2", "--local-addr", "10.0.0.2"], {"local_ranks_filter": (0, 2), "local_addr": "10.0.0.2"}),
    ],
)
def test_behind_dashes_the_beginning_of_a_name_will_do(words, options):
    if options is None:
        with pytest.raises(OptionError, match="could be"):
            read_command([*words, "t.py"], TABLE)
    else:
        assert read_command([*words, "t.py"], TABLE) == (options, ["t.py"])
    read = read_launch_line("--max-r 2 --nproc=3 t.py", TABLE, {}, Surface.LINE)
    assert read == ({"max_restarts": 2, "nproc_per_node": 3}, ["t.py"])
    assert "Did you mean 'max_restarts'" in refusal("max_r=2")


@pytest.mark.parametrize("word", ["lr=0.1.py", "devices=cpu", "max_restarts=1", "-"])
def test_in_a_shell_options_stand_behind_dashes_and_nothing_else_does(word):
    assert read_command(["--role", "a", word, "x"], TABLE) == ({"role": "a"}, [word, "x"])


def test_the_environment_gives_what_the_command_line_does_not():
    environment = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "auto",
        "PET_NODE_RANK": "1",
        "PET_STANDALONE": "0",
        "PET_RDZV_CONF": "timeout=60",
        "PET_SHUTDOWN_TIMEOUT": "3",
        "PET_MASTER_PORT": "",
        "PET_DEVICES": "cuda:7",
        "PET_WHATEVER": "x",
        "pet_role": "x",
        "PATH": "/bin",
    }
    found = read_environment(environment, TABLE, given={"node_rank"})
    assert found == {
        "nnodes": ("PET_NNODES", (2, 2)),
        "nproc_per_node": ("PET_NPROC_PER_NODE", "auto"),
        "standalone": ("PET_STANDALONE", False),
        "rdzv_configs": ("PET_RDZV_CONF", {"timeout": "60"}),
        "grace": ("PET_SHUTDOWN_TIMEOUT", 3.0),
    }
    for variable, text, sentence in [
        ("PET_NNODES", "many", "nnodes='many' is not valid: expected"),
        ("PET_NUMA_BINDING", "node", "'numa_binding' is not available in this version"),
    ]:
        with pytest.raises(OptionError) as caught:
            read_environment({variable: text}, TABLE, given=())
        assert str(caught.value).startswith(sentence)
        assert str(caught.value).endswith(f" The environment sets {variable}.")


@pytest.mark.parametrize(
    ("line", "surface", "asks"),
    [
        ("devices=cpu --help", Surface.CELL, True),
        ("background -h", Surface.CELL, True),
        ("nonsense=3 -h", Surface.CELL, False),
        ("max_restarts=1 --help train.py", Surface.LINE, True),
        ("train.py --help", Surface.LINE, False),
        ("--role -h train.py", Surface.LINE, False),
    ],
)
def test_help_may_be_asked_for_among_options(line, surface, asks):
    assert asks_for_help(split_words(line), TABLE, surface) == asks


def test_help_is_asked_for_by_a_word():
    assert [wants_help(line) for line in ("-h", " --help ", "?", "devices=cpu", "")] == [True, True, True, False, False]


# ---- completion


def completions(typed):
    return complete_line(typed, TABLE, NOTEBOOK, Surface.CELL)


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch):
    gpus = tuple(lo.d.Gpu(uuid=f"GPU-{n}", name="H200", memory_bytes=1, board=n) for n in range(4))
    monkeypatch.setattr(lo.d, "inventory", lambda **_: lo.d.Inventory(gpus=gpus, n_cores=2))


def test_every_option_of_the_place_is_offered_at_the_start():
    fragment, offered = completions("")
    assert fragment == ""
    assert offered == [option.name if option.grammar.is_flag else f"{option.name}=" for option in TABLE.on(Surface.CELL)]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("max", ("max", ["max_restarts="])),
        ("max-r", ("max-r", ["max_restarts="])),
        ("--max", ("--max", ["--max-restarts"])),
        ("max_restarts=1 max", ("max", [])),
        ("backg", ("backg", ["background"])),
        ("env=A=1 en", ("en", ["env="])),
        ("ui=", ("", ["auto", "widget", "text", "none"])),
        ("ui=w", ("w", ["widget"])),
        ("--ui w", ("w", ["widget"])),
        ("--ui ", ("", ["auto", "widget", "text", "none"])),
        ("devices=", ("", ["auto", "auto:*", "cpu", "cpu:*", "cuda", "cuda:*", "cuda:free"])),
        ("devices=cuda:", ("cuda:", ["cuda:*", "cuda:free", "cuda:0", "cuda:1", "cuda:2", "cuda:3"])),
        ("devices=cuda:1,", ("", ["0", "2", "3"])),
        ("devices=cuda:1,2", ("2", ["2"])),
        ("devices=pick", ("pick", ["picker"])),
        ("role=tr", ("tr", [])),
        ("devcies=cu", ("", [])),
        ("args=(1, ", ("", [])),
        ("log_dir='a", ("", [])),
        ("-o ru", ("ru", [])),
    ],
)
def test_completion(typed, expected):
    assert completions(typed) == expected
