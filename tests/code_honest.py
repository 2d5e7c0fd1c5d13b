# ruff: noqa: E501 - programs as data
"""Honest programs for the code reward's tests: each works under ordinary CPython."""

from __future__ import annotations

# name: (script, stdin, expected stdout)
SCRIPTS: dict[str, tuple[str, str, str]] = {
    "input": ("n = int(input())\nprint(n * 2)", "21\n", "42\n"),
    "no_final_newline": ("print(input()[::-1], end='')", "abc", "cba\n"),
    "trailing_blanks": ("print('1 2 3 ')\nprint()", "", "1 2 3\n"),
    "main_guard": (
        "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
        "1 2 3\n",
        "6\n",
    ),
    "buffer_read": (
        "import sys\ndata = sys.stdin.buffer.read().split()\nprint(len(data))",
        "a b\nc\n",
        "3",
    ),
    "readline": (
        "import sys\ninput = sys.stdin.readline\nprint(int(input()) + int(input()))",
        "1\n2\n",
        "3",
    ),
    "iterate_stdin": (
        "import sys\nfor line in sys.stdin: print(line.strip().upper())",
        "a\nb\n",
        "A\nB",
    ),
    "open_0": ("print(sum(map(int, open(0).read().split())))", "1 2\n3\n", "6"),
    "dev_stdin": ("print(open('/dev/stdin').read().strip())", "hello\n", "hello"),
    "os_read": ("import os\nprint(len(os.read(0, 1 << 20)))", "12345", "5"),
    "fileinput": ("import fileinput\nprint(sum(int(s) for s in fileinput.input()))", "1\n2\n", "3"),
    "until_end": (
        "total = 0\nwhile True:\n    try: total += int(input())\n    except EOFError: break\nprint(total)",
        "1\n2\n3\n",
        "6",
    ),
    "iter_input": ("print(sum(map(int, iter(input, ''))))", "4\n5\n\n", "9"),
    "wrapped_stdin": (
        "import io, sys\nsys.stdin = io.TextIOWrapper(sys.stdin.buffer, 'utf-8')\nprint(input())",
        "\u00e9\n",
        "\u00e9",
    ),
    "crlf_input": ("print(input() + '|')", "ab\r\n", "ab|"),
    "mapped_stdin": (
        "import mmap\nprint(mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:3].decode())",
        "abcdef",
        "abc",
    ),
    "prompt_expected": ("n = input('n? ')\nprint(n)", "5\n", "n? 5\n"),
    "prompt_not_expected": ("n = int(input('Enter n: '))\nprint(n)", "5\n", "5\n"),
    "exit_function": ("print(1)\nexit()", "", "1"),
    "quit_function": ("print(1)\nquit(0)", "", "1"),
    "sys_exit": ("import sys\nprint(1)\nsys.exit()", "", "1"),
    "exit_in_function": ("import sys\ndef f():\n    print(1)\n    sys.exit(0)\nf()", "", "1"),
    "flush_then_os_exit": ("import os\nprint(1, flush=True)\nos._exit(0)", "", "1"),
    "atexit": ("import atexit\natexit.register(lambda: print('bye'))\nprint('hi')", "", "hi\nbye"),
    "stdout_write": ("import sys\nsys.stdout.write('a\\n' * 3)", "", "a\na\na"),
    "stdout_buffer": ("import sys\nsys.stdout.buffer.write(b'ok\\n')", "", "ok"),
    "os_write": ("import os\nos.write(1, b'ok\\n')", "", "ok"),
    "stringio": (
        "import io, sys\nout = io.StringIO()\nprint(5, file=out)\nsys.stdout.write(out.getvalue())",
        "",
        "5",
    ),
    "stderr_noise": ("import sys\nprint('debug', file=sys.stderr)\nprint(1)", "", "1"),
    "unicode": (
        "print(input() + ' \u2713 \U0001f600')",
        "\u65e5\u672c\n",
        "\u65e5\u672c \u2713 \U0001f600",
    ),
    "deep_recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "print(f(100000))",
        "",
        "100000",
    ),
    "cached_recursion": (
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10**6)\n"
        "@lru_cache(None)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(50000))",
        "",
        "50000",
    ),
    "thread_stack": (
        "import sys, threading\nsys.setrecursionlimit(10**7)\nthreading.stack_size(1 << 28)\n"
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(f(100000)))\nt.start()\nt.join()",
        "",
        "100000",
    ),
    "stack_limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\n"
        "print(1)",
        "",
        "1",
    ),
    "big_integer": ("print(len(str(7 ** 20000)))", "", "16902"),
    "big_integer_in": ("print(int(input()) % 97)", "9" * 6000 + "\n", str((10**6000 - 1) % 97)),
    "digits_limit": (
        "import sys\nsys.set_int_max_str_digits(0)\nprint(len(str(10**9999)))",
        "",
        "10000",
    ),
    "thread_not_joined": (
        "import threading, time\ndef f():\n    time.sleep(0.05); print('late')\n"
        "threading.Thread(target=f).start()",
        "",
        "late",
    ),
    "many_threads": (
        "import threading\nout = []\nts = [threading.Thread(target=out.append, args=(i,)) for i in "
        "range(40)]\n[t.start() for t in ts]; [t.join() for t in ts]\nprint(sum(out))",
        "",
        "780",
    ),
    "executor": (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as e:\n"
        "    print(sum(e.map(lambda x: x * x, range(10))))",
        "",
        "285",
    ),
    "thread_pool": (
        "from multiprocessing.pool import ThreadPool\nprint(sum(ThreadPool(2).map(abs, [-1, -2])))",
        "",
        "3",
    ),
    "queue": (
        "import queue, threading\nq = queue.Queue()\nthreading.Thread(target=q.put, args=(3,)).start()\n"
        "print(q.get())",
        "",
        "3",
    ),
    "asyncio": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0.01)\n    return x\n"
        "async def main():\n    print(sum(await asyncio.gather(f(1), f(2))))\nasyncio.run(main())",
        "",
        "3",
    ),
    "to_thread": (
        "import asyncio\nprint(asyncio.run(asyncio.to_thread(lambda: 5)))",
        "",
        "5",
    ),
    "signal_alarm": (
        "import signal, time\nclass Late(Exception): pass\ndef stop(*a): raise Late\n"
        "signal.signal(signal.SIGALRM, stop)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "try: time.sleep(5)\nexcept Late: print('stopped')",
        "",
        "stopped",
    ),
    "temporary_file": (
        "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n    f.write('x'); f.seek(0); "
        "print(f.read())",
        "",
        "x",
    ),
    "own_file": ("open('out.txt', 'w').write('7')\nprint(open('out.txt').read())", "", "7"),
    "files_renamed": (
        "import os\nopen('a', 'w').close(); os.rename('a', 'b'); print(os.listdir('.')); os.remove('b')",
        "",
        "['b']",
    ),
    "future_import": (
        "from __future__ import annotations\ndef f(x: Nope): return 1\nprint(f(0))",
        "",
        "1",
    ),
    "dataclass_pickle": (
        "import pickle\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "print(pickle.loads(pickle.dumps(P(3))))",
        "",
        "P(x=3)",
    ),
    "library": (
        "import hashlib, uuid, decimal, sqlite3, zlib, struct, secrets, statistics, logging, locale\n"
        "c = sqlite3.connect(':memory:')\nprint(c.execute('select 1 + 1').fetchone()[0])",
        "",
        "2",
    ),
    "own_exit_code": ("raise SystemExit(0)", "", ""),
    "random_differs": (
        "import random\nrandom.seed(1)\nprint(random.randint(1, 10**6))",
        "",
        "140892",
    ),
    "exec_source": ("code = 'x = 1\\nprint(x + 1)'\nexec(code)", "", "2"),
    "globals_used": (
        "x = 3\ndef f():\n    global x\n    x += 1\nf()\nprint(x, __name__)",
        "",
        "4 __main__",
    ),
    "shadowed": ("list = [1, 2]\nsum = 0\nfor i in list: sum += i\nprint(sum)", "", "3"),
    "memory_200mb": ("x = bytearray(b'1') * (200 << 20)\nprint(len(x))", "", str(200 << 20)),
    "large_output": (
        "print('\\n'.join(map(str, range(300000))))",
        "",
        "\n".join(map(str, range(300000))),
    ),
    "large_input": ("import sys\nprint(len(sys.stdin.read()))", "x" * 3_000_000, "3000000"),
    "sorted_by_recursive_key": (
        "import sys\nsys.setrecursionlimit(10**5)\ndef d(n): return 0 if n == 0 else max([d(n - 1)], "
        "key=lambda v: v) + 1\nprint(d(5000))",
        "",
        "5000",
    ),
    "warning": ("import warnings\nwarnings.warn('old')\nprint(1)", "", "1"),
    "handled_error": (
        "import traceback\ntry: 1 / 0\nexcept ZeroDivisionError: traceback.print_exc(); print('caught')",
        "",
        "caught",
    ),
    "finally_runs": ("try:\n    raise SystemExit\nfinally:\n    print('done')", "", "done"),
    "select_stdin": (
        "import select, sys\nprint(bool(select.select([sys.stdin], [], [], 1)[0]), input())",
        "x\n",
        "True x",
    ),
    "environment": (
        "import os\nprint(os.environ.get('HOME', '-'), os.getcwd() == '/tmp')",
        "",
        "- True",
    ),
    "argv": ("import sys\nprint(len(sys.argv))", "", "1"),
}

# name: (program, fn_name, args, expected)
FUNCTIONS: dict[str, tuple[str, str, list[object], object]] = {
    "plain": ("def add(a, b): return a + b", "add", [1, 2], 3),
    "typing_names": (
        "def f(x: List[int], y: Optional[Dict[str, int]] = None) -> Tuple[int, ...]:\n    return tuple(x)",
        "f",
        [[1, 2]],
        [1, 2],
    ),
    "solution": ("class Solution:\n    def f(self, x: int) -> int: return x + 1", "f", [1], 2),
    "solution_leetcode_names": (
        "class Solution:\n    def f(self, s: str) -> List[int]:\n        c = Counter(s); h = []\n"
        "        for v in c.values(): heapq.heappush(h, v)\n        return [heappop(h) for _ in range("
        "len(h))] + [math.inf > 1, inf > 1]",
        "f",
        ["aab"],
        [1, 2, True, True],
    ),
    "solution_static": (
        "class Solution:\n    @staticmethod\n    def f(x): return x\n    @lru_cache(None)\n"
        "    def g(self, x): return self.f(x)",
        "g",
        [4],
        4,
    ),
    "solution_state": (
        "class Solution:\n    def __init__(self): self.k = 2\n    def f(self, x): return self.k * x",
        "f",
        [4],
        8,
    ),
    "main_guard": (
        "def f(x): return x\nif __name__ == '__main__':\n    print(f(int(input())))",
        "f",
        [5],
        5,
    ),
    "prints_too": ("print('loading')\ndef f(x):\n    print(x)\n    return x", "f", [5], 5),
    "named_lambda": ("f = lambda x: x * 2", "f", [2], 4),
    "partial": ("from functools import partial\nf = partial(pow, 2)", "f", [5], 32),
    "callable_object": ("class F:\n    def __call__(self, x): return x\nf = F()", "f", [1], 1),
    "tuple_for_list": ("def f(): return (1, (2, 3))", "f", [], [1, [2, 3]]),
    "subclasses": (
        "from collections import Counter, OrderedDict, namedtuple\nP = namedtuple('P', 'x y')\n"
        "def f(): return [Counter('aab'), OrderedDict(k=1), P(1, 2), True]",
        "f",
        [],
        [{"a": 2, "b": 1}, {"k": 1}, [1, 2], True],
    ),
    "enum": (
        "from enum import IntEnum\nclass E(IntEnum):\n    A = 3\ndef f(): return E.A",
        "f",
        [],
        3,
    ),
    "int_keys": ("def f(): return {1: 'a', 2: 'b'}", "f", [], {"1": "a", "2": "b"}),
    "float_for_int": ("def f(): return 2.0", "f", [], 2),
    "big_integer": ("def f(n): return 3 ** n", "f", [20000], 3**20000),
    "big_argument": ("def f(n): return n % 1000003", "f", [7**9000], 7**9000 % 1000003),
    "none": ("def f(): pass", "f", [], None),
    "nested": (
        "def f(x): return {'a': [x, None, {'b': 1.5}]}",
        "f",
        ["\u00e9"],
        {"a": ["\u00e9", None, {"b": 1.5}]},
    ),
    "recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "f",
        [50000],
        50000,
    ),
    "future_import": (
        "from __future__ import annotations\ndef f(x: Nope) -> Nope: return x",
        "f",
        [1],
        1,
    ),
    "dataclass": (
        "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    x: int\n"
        "    y: list = field(default_factory=list)\ndef f(x): return sorted([P(x), P(1)])[0].x",
        "f",
        [3],
        1,
    ),
    "helper_named_as_builtin": (
        "def sum(xs): return 42\ndef f(xs): return sum(xs)",
        "f",
        [[1]],
        42,
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(n):\n"
        "    with ThreadPoolExecutor(2) as e: return list(e.map(str, range(n)))",
        "f",
        [3],
        ["0", "1", "2"],
    ),
}
