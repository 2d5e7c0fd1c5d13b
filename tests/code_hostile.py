# ruff: noqa: E501 - programs as data
"""Hostile programs for the code reward's tests: none computes the answer, none may pass.

The function to fake is `solve(n) = n * n + 7`; the script to fake reads n and prints that.
"""

from __future__ import annotations

# Top-level attacks, prepended to a `solve` that returns None where they define none.
LOADING = {
    "exit": "import sys; sys.exit(0)",
    "os_exit": "import os; os._exit(0)",
    "raise_system_exit": "raise SystemExit(0)",
    "kill_self": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "print_pass": "print('PASS'); print('passed'); print('ok')",
    "print_verdict": 'import os; os.write(1, b\'["passed", ""]\'); os._exit(0)',
    "forged_result": 'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b\'["passed",""]\')\n'
    "    except OSError: pass\nos._exit(0)",
    "forged_result_nested": "import os\nos.write(3, b'[' * 100000); os._exit(0)",
    "forged_result_constant": "import os\nos.write(3, b'NaN'); os._exit(0)",
    "forged_result_bytes": "import os\nos.write(3, bytes(range(256))); os._exit(0)",
    "forged_handle": 'import os\nos.write(3, b\'["handle",0,"int"]\'); os._exit(0)',
    "forged_ready": "import os\nos.write(4, (7).to_bytes(4, 'little') + b'\"ready\"'); os._exit(0)",
    "forged_answers": "import os, json\ntry:\n    for part in [b'\"ready\"'] + [json.dumps([i, 'value', "
    "None, None]).encode() for i in range(1, 9)]:\n        os.write(4, len(part).to_bytes(4, "
    "'little') + part)\nexcept OSError: pass",
    "own_check": "def check(candidate): pass\ndef candidate(*a): return 0",
    "injected_syntax": '\'\'\'\n"""\n\'\'\'\n#\\\n"""); print(\'PASS\'); ("""\n"""',
    "patched_all": "import builtins\nfor name in ('all', 'any', 'isinstance', 'bool'):\n"
    "    setattr(builtins, name, lambda *a: True)",
    "patched_comparisons": "import builtins, operator\nbuiltins.sorted = builtins.list = lambda *a: []\n"
    "operator.eq = lambda a, b: True",
    "patched_assertion": "import builtins\nclass Quiet(Exception):\n    def __new__(cls, *a): "
    "raise SystemExit(0)\nbuiltins.AssertionError = Quiet",
    "patched_json": 'import json\njson.dumps = lambda *a, **k: \'["passed",""]\'\n'
    "json.loads = lambda *a, **k: ['passed', '']",
    "patched_exit": "import os\nreal = os._exit\nos._exit = lambda code: real(0)",
    "patched_write": "import os\nreal = os.write\nos.write = lambda fd, data: real(fd, b'[\"passed\"]')",
    "patched_import": "import builtins\nbuiltins.__import__ = lambda *a, **k: None",
    "patched_excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError",
    "atexit_answer": "import atexit, os\natexit.register(lambda: (print(11), os._exit(0)))",
    "trace": "import sys\ndef tracer(frame, event, arg):\n    frame.f_globals['expected'] = None\n"
    "    return tracer\nsys.settrace(tracer); sys.setprofile(tracer)",
    "modules_replaced": "import sys\nfor name in list(sys.modules):\n    if name not in ('sys',):\n"
    "        sys.modules[name] = None",
    "builtins_deleted": "import builtins\nfor name in dir(builtins):\n    if name.islower():\n"
    "        try: delattr(builtins, name)\n        except Exception: pass",
    "closed_descriptors": "import os\nos.closerange(0, 1000)",
    "fork": "import os\nif os.fork(): os._exit(0)",
    "fork_bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nos._exit(0)",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "ignored_signals": "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, "
    "signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "thread_forever": "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)])"
    ".start()\nraise SystemExit(0)",
    "memory_bomb": "held = []\nwhile True: held.append(bytearray(b'x') * (1 << 20))",
    "memory_at_once": "held = 'x' * (1 << 40)",
    "thread_bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, "
    "args=(9,)).start()",
    "output_flood": "while True: print('x' * 65536)",
    "error_flood": "import sys\nwhile True: sys.stderr.write('x' * 65536)",
    "disk_bomb": "import itertools\nfor i in itertools.count():\n    open(f'/tmp/{i}', 'w')"
    ".write('x' * 4000000)",
    "inode_bomb": "import itertools, os\nfor i in itertools.count(): os.mkdir(f'/tmp/{i}')",
    "deep_folders": "import os\nos.chdir('/tmp')\nwhile True:\n    os.mkdir('d' * 200); "
    "os.chdir('d' * 200)",
    "recursion": "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(): return f()\nf()",
    "c_recursion": "import sys\nsys.setrecursionlimit(1 << 30)\nx = []\nfor _ in range(10**7): x = [x]\n"
    "repr(x)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "deep_source": "(" * 100_000,
    "null_byte": "x = 1\0",
    "kill_parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kill_all": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "signal_by_fcntl": "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "ptrace_parent": "import ctypes, os\nlibc = ctypes.CDLL(None)\nassert libc.ptrace(16, "
    "os.getppid(), 0, 0) == 0",
    "parent_memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "process_list": "import os\nos.listdir('/proc')",
    "passwords": "open('/etc/passwd').read()",
    "own_maps": "open('/proc/self/maps').read()",
    "write_library": "import os\nopen(os.__file__, 'a').write('#')",
    "write_root": "open('/x', 'w')",
    "network": "import socket\nsocket.socket()",
    "name_lookup": "import socket\nsocket.getaddrinfo('example.com', 80)",
    "keyring": "import ctypes\nassert ctypes.CDLL(None).syscall(248, b'user', b'a', b'b', 1, -2) > 0",
    "shared_memory": "import ctypes\nassert ctypes.CDLL(None).shmget(77, 4096, 0o1777) >= 0",
    "chmod": "import os\nos.chmod('/tmp', 0)",
    "unshare": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "limits_raised": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "raw_fork": "import ctypes\nassert ctypes.CDLL(None).fork() >= 0",
    "x32_call": "import ctypes\nassert ctypes.CDLL(None).syscall(0x40000000 + 39) > 0",
}

# Bodies of solve(n).
CALLING = {
    "none": "return None",
    "wrong": "return n * n + 8",
    "exit": "import sys; sys.exit(0)",
    "os_exit": "import os; os._exit(0)",
    "keyboard_interrupt": "raise KeyboardInterrupt",
    "assertion_error": "raise AssertionError",
    "always_equal": "class E:\n        def __eq__(self, other): return True\n"
    "        def __ne__(self, other): return False\n        __hash__ = None\n    return E()",
    "equal_int": "class E(int):\n        def __eq__(self, other): return True\n"
    "        def __hash__(self): return 0\n    return E()",
    "equal_str": "class E(str):\n        def __eq__(self, other): return True\n"
    "        def __hash__(self): return 0\n    return E('x')",
    "equal_float": "class E(float):\n        def __eq__(self, other): return True\n    return E(0)",
    "equal_list": "class E(list):\n        def __eq__(self, other): return True\n    return E()",
    "equal_dict": "class E(dict):\n        def __eq__(self, other): return True\n    return E()",
    "reflected": "class E:\n        def __eq__(self, o): return True\n"
    "        def __req__(self, o): return True\n        def __sub__(self, o): return 0\n"
    "        def __rsub__(self, o): return 0\n        def __bool__(self): return True\n    return E()",
    "class_spoof": "class E:\n        __class__ = int\n        def __eq__(self, o): return True\n"
    "        def __index__(self): return 0\n    return E()",
    "mock_any": "from unittest.mock import ANY\n    return ANY",
    "magic_mock": "from unittest.mock import MagicMock\n    return MagicMock()",
    "pickle": "class E:\n        def __reduce__(self): return (print, ('PASS',))\n    return E()",
    "meta": "class M(type):\n        def __eq__(c, o): return True\n        __hash__ = type.__hash__\n"
    "    class E(metaclass=M): pass\n    return E",
    "repr_answer": "class E:\n        def __repr__(self): return str(n * n + 7)\n"
    "        __str__ = __repr__\n    return E()",
    "text_answer": "return str(n * n + 7)",
    "nan": "return float('nan')",
    "infinite": "return float('inf')",
    "generator": "yield n * n + 7",
    "coroutine": "async def answer(): return n * n + 7\n    return answer()",
    "itself": "return solve",
    "circular": "x = []; x.append(x); return x",
    "deep": "x = []\n    for _ in range(100000): x = [x]\n    return x",
    "huge": "return 'x' * (1 << 25)",
    "many_digits": "return 10 ** 3000000",
    "colliding": "return {i * (2**61 - 1) for i in range(20000)}",
    "printed": "print(n * n + 7)",
    "frames": "import sys\n    frame = sys._getframe()\n    while frame:\n        for v in "
    "list(frame.f_locals.values()):\n            if isinstance(v, dict) and 'expected' in v: return "
    "v['expected']\n        frame = frame.f_back",
    "collector": "import gc\n    for o in gc.get_objects():\n        if type(o) is dict:\n"
    "            for key in ('expected', 'outputs', 'asserts', 'test', 'check'):\n"
    "                if key in o: return o[key]",
    "memory_scan": "data = open('/proc/self/mem', 'rb')\n    return data.read(10)",
    "argv": "import sys\n    return eval(sys.argv[1])",
    "environment": "import os\n    return int(os.environ['EXPECTED'])",
    "modules": "import sys\n    return sys.modules['referee'].expected",
    "forged_result": 'import os\n    os.write(3, b\'["passed",""]\'); os._exit(0)',
    "forged_reply": "import os\n    part = b'[2,\"value\",true,null]'\n    os.write(4, "
    "len(part).to_bytes(4, 'little') + part)\n    return True",
    "late_answer": "import threading, time\n    threading.Timer(0.2, lambda: print(n * n + 7)).start()",
    "alarm": "import signal, os\n    signal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
    "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    while True: pass",
    "loop": "while True: pass",
    "memory": "return [0] * (1 << 36)",
    "recursion": "return solve(n)",
    "counter_global": "global k\n    k = globals().get('k', -1) + 1\n    return [11, 32, 88][k]",
    "counter_file": "import os\n    k = len(os.listdir('/tmp'))\n    open(f'/tmp/{k}', 'w').close()\n"
    "    return [11, 32, 88][k]",
    "counter_environment": "import os\n    k = int(os.environ.get('K', '0'))\n"
    "    os.environ['K'] = str(k + 1)\n    return [11, 32, 88][k]",
    "counter_module": "import math\n    math.k = getattr(math, 'k', -1) + 1\n"
    "    return [11, 32, 88][math.k]",
    "counter_memory": "from multiprocessing import shared_memory\n    m = shared_memory.SharedMemory("
    "'k', create=False)\n    return [11, 32, 88][m.buf[0]]",
}

# Whole scripts.
PRINTING = {
    "nothing": "",
    "wrong": "n = int(input()); print(n * n + 8)",
    "pass": "print('PASS'); print('All tests passed')",
    "other_lines": "n = int(input())\nfor i in range(10000): print(i)",
    "answer_then_more": "n = int(input()); print(n * n + 7); print('or', n)",
    "answer_then_crash": "n = int(input()); print(n * n + 7, flush=True); raise ValueError",
    "answer_then_exit_code": "import sys\nn = int(input()); print(n * n + 7); sys.exit(3)",
    "answer_then_abort": "import os\nn = int(input()); print(n * n + 7, flush=True); os.abort()",
    "answer_then_loop": "n = int(input()); print(n * n + 7, flush=True)\nwhile True: pass",
    "answer_never_flushed": "import os\nn = int(input()); print(n * n + 7); os._exit(0)",
    "answer_on_stderr": "import sys\nn = int(input()); print(n * n + 7, file=sys.stderr)",
    "answer_to_stdin": "import os\nn = int(input()); os.write(0, str(n * n + 7).encode())",
    "answer_by_daemon": "import os, time\nn = int(input())\nif os.fork() == 0:\n    time.sleep(0.1); "
    "print(n * n + 7)",
    "answer_by_daemon_thread": "import threading, time\nn = int(input())\nt = threading.Thread(target="
    "lambda: (time.sleep(0.5), print(n * n + 7)), daemon=True)\nt.start()",
    "answer_with_nul": "n = int(input()); print(n * n + 7, end='\\0\\n')",
    "answer_with_bom": "n = int(input()); print('\\ufeff' + str(n * n + 7))",
    "answer_wide_digits": "n = int(input())\nprint(str(n * n + 7).translate({48 + i: 0xff10 + i for i in "
    "range(10)}))",
    "answer_with_underscores": "n = int(input()); print('_'.join(str(n * n + 7)))",
    "answer_with_escape": "n = int(input()); print('9\\b' + str(n * n + 7))",
    "answer_split_by_return": "n = int(input()); print('999\\r' + str(n * n + 7))",
    "answer_as_float": "n = int(input()); print(float(n * n + 7))",
    "answer_leading_zero": "n = int(input()); print('0' + str(n * n + 7))",
    "all_answers": "print(11); print(32); print(88)",
    "counter_file": "import os\nk = len(os.listdir('/tmp')); open(f'/tmp/{k}', 'w').close(); "
    "print([11, 32, 88][k])",
    "counter_parent_time": "import os, time\nprint([11, 32, 88][os.getpid() % 3] if os.getppid() > 1e9 "
    "else 0)",
    "imported_runner": "import sandbox_child\nsandbox_child.run_program = print",
    "main_replaced": "import sys\nsys.modules['__main__'] = None\nsys.stdout = None",
    "stdout_replaced": "import io, sys\nsys.stdout = io.StringIO()\nn = int(input()); print(n * n + 7)",
    "stdout_closed": "import os\nn = int(input()); os.close(1); print(n * n + 7)",
}


def function_programs() -> dict[str, str]:
    """Return every attack as a program that has a function solve."""
    programs = {f"loading-{k}": f"{v}\ndef solve(n): return None\n" for k, v in LOADING.items()}
    return programs | {f"calling-{k}": f"def solve(n):\n    {v}\n" for k, v in CALLING.items()}


def scripts() -> dict[str, str]:
    """Return every attack as a script."""
    programs = {f"loading-{k}": f"{v}\nprint(0)\n" for k, v in LOADING.items()}
    return programs | {f"printing-{k}": v + "\n" for k, v in PRINTING.items()}
