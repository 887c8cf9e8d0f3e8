#!/usr/bin/env python3
"""style.py - checks of the house rules that a compiler does not make.

    tools/style.py              checks the tree, prints 'file:line: rule: text', exits 1 on any
    tools/style.py --self-test  feeds each rule snippets it must flag and one it must not

Rules work on a dictionary {path: text}, so that the self-test needs no files. C sources are
also seen with comments and string contents blanked (same length, same lines), so that a rule
on code does not trip over prose. Python standard library only.
SPDX-License-Identifier: MIT"""

import os
import re
import subprocess
import sys

MAX_COLUMNS = 96
FILE_LINES, FILE_LINES_AIM = 1000, 600
FUNCTION_LINES, KERNEL_LINES = 80, 200

# Which rooms of src/ a room may include besides itself: arrows point down only.
ROOMS = {
    'base': [],
    'format': ['base'],
    'text': ['base'],
    'kernels': ['base'],
    'cuda': ['base', 'kernels'],
    'model': ['base', 'format', 'text', 'kernels', 'cuda'],
    'train': ['base', 'format', 'text', 'kernels', 'cuda', 'model'],
    'quant': ['base', 'format', 'text', 'kernels', 'cuda', 'model', 'train'],
}
ROOMS['eval'] = ROOMS['quant'] + ['quant']
ROOMS['report'] = ROOMS['quant'] + ['quant']
ROOMS['serve'] = ROOMS['eval'] + ['eval', 'report']
ROOMS['dist'] = ['base', 'kernels']
ROOMS['api'] = ROOMS['serve'] + ['serve', 'dist']
METHODS = {'flattenquant', 'flatquant'}

# Identifiers that may not be called: (names, where the rule applies, why).
BANNED = [
    (r'strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atoll|atof|strtok|alloca|rand|srand',
     lambda p: True, 'unbounded or unchecked; see house rules'),
    (r'exit|_exit|abort|getenv|secure_getenv|setenv|system|popen|signal|longjmp',
     lambda p: top(p) in ('src', 'include'), 'the library decides nothing for its process'),
    (r'malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strn?dup|v?asprintf',
     lambda p: top(p) == 'src' and room(p) != 'base', 'memory comes from base/mem.h'),
    (r'printf|vprintf|puts|putchar|perror',
     lambda p: top(p) in ('src', 'include'), 'the library does not print'),
]
HAND_WRITTEN = ('.c', '.h', '.cu', '.py', '.sh', '.cmake', '.md')


def top(path):
    return path.split('/')[0]


def room(path):
    parts = path.split('/')
    return parts[1] if parts[0] == 'src' and len(parts) > 2 else None


def is_c(path):
    return path.endswith(('.c', '.h', '.cu'))


def is_build_file(path):
    return (os.path.basename(path) in ('CMakeLists.txt', 'Makefile')
            or path.endswith(('.cmake', '.sh')) or path.startswith('.ci/'))


def is_text(path):
    if path.startswith(('models/', 'tests/fuzz/corpus/', 'tests/golden/data/')):
        return False
    return is_c(path) or is_build_file(path) or path.endswith(HAND_WRITTEN)


TOKEN = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)


def blank(text):
    """Comments become spaces, string contents underscores; lines and columns stay."""
    def hide(match):
        token = match.group(0)
        if token[0] in '"\'':
            return token[0] + '_' * (len(token) - 2) + token[-1]
        return re.sub(r'[^\n]', ' ', token)
    return TOKEN.sub(hide, text)


class Source:
    """One file, with the views that several rules share."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.lines = text.split('\n')
        self.code = blank(text) if is_c(path) else text
        self.code_lines = self.code.split('\n')


class Function:
    """A function definition: name, is static, first line of its head, lines of its body."""

    def __init__(self, head, head_line, body_line, n_lines, comment):
        names = re.findall(r'(\w+)\s*\(', re.sub(r'__attribute__\s*\(\(.*?\)\)', '', head))
        self.name = names[0] if names else '?'
        self.static = re.search(r'\bstatic\b', head) is not None
        self.line, self.body_line, self.n_lines = head_line, body_line, n_lines
        self.comment = comment


def functions(source):
    """Definitions: a '{' at brace depth 0 whose head ends in ')'. Skips the preprocessor."""
    def spaces(match):
        return re.sub(r'[^\n]', ' ', match.group(0))
    code = re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', spaces, source.code, flags=re.M)
    code = re.sub(r'extern\s+"_*"\s*\{', spaces, code)
    found, depth, start, opened = [], 0, 0, None
    for i, char in enumerate(code):
        if char == '{':
            head = code[start:i]
            if depth == 0 and head.rstrip().endswith(')') and '=' not in head:
                opened = (head, start + len(head) - len(head.lstrip()), i)
            depth += 1
        elif char == '}':
            depth = 0 if code[i - 1:i] in ('\n', '') else max(depth - 1, 0)
            if depth == 0 and opened:
                head, at, body = opened
                line, body_line = code.count('\n', 0, at) + 1, code.count('\n', 0, body) + 1
                n_lines = code.count('\n', 0, i) + 2 - body_line
                above = source.text[start:at]
                found.append(Function(head, line, body_line, n_lines, above))
                opened = None
            if depth == 0:
                start = i + 1
        elif char == ';' and depth == 0:
            start = i + 1
    return found


# ---- rules: each takes {path: Source} and yields (path, line, text) ----------------------

def rule_include_arrows(tree):
    for path, s in tree.items():
        if not is_c(path):
            continue
        for n, line in enumerate(s.lines, 1):
            match = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
            if match and s.code_lines[n - 1].lstrip().startswith('#'):
                yield from ((path, n, why) for why in bad_include(path, *match.groups()))


def bad_include(path, quote, target):
    if '..' in target.split('/'):
        yield 'include "%s": write the path from src/' % target
        return
    if target.split('/')[0] == 'lab' and top(path) != 'lab':
        yield 'lab/ is scratch: nothing else includes it'
    if top(path) == 'cli' and quote == '"' and not target.startswith('cli/'):
        if '/' in target:
            yield 'cli sees only include/ and its own headers, not "%s"' % target
    if top(path) != 'src' or quote != '"':
        return
    mine, theirs = room(path), target.split('/')[0]
    if mine not in ROOMS:
        yield 'src/%s is no room of docs/layout.md' % (mine or '')
    elif theirs not in ROOMS or '/' not in target:
        yield 'include "%s": write the path from src/' % target
    elif theirs != mine and theirs not in ROOMS[mine]:
        yield '%s may not see %s' % (mine, theirs)
    for other in METHODS:
        seen_from = path.split('/')[2] if mine == 'quant' else ''
        if seen_from in METHODS - {other} and target.startswith('quant/%s/' % other):
            yield '%s may not see %s' % (seen_from, other)


def uses_onednn(source):
    return re.search(r'#\s*include\s*<(oneapi/dnnl/)?dnnl[\w.]*>', source.text) is not None


def rule_one_onednn_file(tree):
    users = [p for p in sorted(tree) if is_c(p) and uses_onednn(tree[p])]
    for path in users[1:]:
        yield path, 1, 'oneDNN is used in one file, %s' % users[0]


def rule_banned_calls(tree):
    for path, s in tree.items():
        if not is_c(path):
            continue
        for names, applies, why in BANNED:
            if not applies(path):
                continue
            for n, line in enumerate(s.code_lines, 1):
                for match in re.finditer(r'(?<![\w.>])(%s)\s*\(' % names, line):
                    yield path, n, '%s: %s' % (match.group(1), why)
        if top(path) in ('src', 'include'):
            for n, line in enumerate(s.code_lines, 1):
                if re.search(r'\b(stdout|stderr)\b', line):
                    yield path, n, 'the library does not print'


def rule_openmp_in_base(tree):
    for path, s in tree.items():
        if not is_c(path) or top(path) != 'src' or room(path) == 'base':
            continue
        # oneDNN takes its number of threads from OpenMP: its file may set it.
        banned = r'\s*#\s*pragma\s+omp\s+(?!simd)'
        if not uses_onednn(s):
            banned += r'|\s*#\s*include\s*<omp\.h>'
        for n, line in enumerate(s.code_lines, 1):
            if re.match(banned, line):
                yield path, n, 'loops go through fl__parallel_for (base/exec.h)'


def rule_file_length(tree):
    for path, s in tree.items():
        n = s.text.count('\n')
        if not is_c(path) and not path.endswith(('.py', '.sh')):
            continue
        if n > FILE_LINES and 'style: table' not in s.text[:2000]:
            yield path, n, '%d lines, at most %d' % (n, FILE_LINES)


def rule_function_length(tree):
    for path, s in tree.items():
        if not is_c(path):
            continue
        for f in functions(s):
            long_allowed = room(path) == 'kernels' or 'state machine' in f.comment.lower()
            limit = KERNEL_LINES if long_allowed else FUNCTION_LINES
            if f.n_lines > limit:
                yield path, f.line, '%s has %d lines, at most %d' % (f.name, f.n_lines, limit)


def rule_columns(tree):
    for path, s in tree.items():
        if is_text(path) and not path.endswith('.md'):
            for n, line in enumerate(s.lines, 1):
                if len(line) > MAX_COLUMNS:
                    yield path, n, '%d columns, at most %d' % (len(line), MAX_COLUMNS)


def rule_whitespace(tree):
    for path, s in tree.items():
        if not is_text(path):
            continue
        makefile = os.path.basename(path) == 'Makefile'
        for n, line in enumerate(s.lines, 1):
            if '\t' in (line.lstrip('\t') if makefile else line):
                yield path, n, 'tab'
            if line != line.rstrip():
                yield path, n, 'white space at the end'
        if s.text and (not s.text.endswith('\n') or s.text.endswith('\n\n')):
            yield path, len(s.lines), 'ends without exactly one newline'


KEYWORD = r'\b(if|for|while|switch)'
SPACING = re.compile(KEYWORD + r'\(|\belse\{|' + KEYWORD + r' .*\)\{$')


def rule_spacing(tree):
    for path, s in tree.items():
        if not is_c(path):
            continue
        for n, line in enumerate(s.code_lines, 1):
            if SPACING.search(line):
                yield path, n, 'space between keyword, parenthesis and brace'
            if re.match(r'\w.*\)\s*\{$', line) and '=' not in line:
                yield path, n, "a function's brace stands on a line of its own"


def rule_unique_names(tree):
    seen = {}
    for path in sorted(tree):
        if not is_c(path):
            continue
        stem = os.path.splitext(path)[0]
        first = seen.setdefault(os.path.basename(stem), stem)
        if first != stem:
            yield path, 1, 'file name already taken by %s' % first


def rule_first_comment(tree):
    for path, s in tree.items():
        if not is_c(path):
            continue
        match = re.match(r'/\*.*?\*/', s.text, re.S)
        comment = match.group(0) if match else ''
        if 'SPDX-License-Identifier: MIT' not in comment:
            yield path, 1, 'no SPDX-License-Identifier: MIT in the first comment'
        if not comment.startswith('/* %s - ' % os.path.basename(path)):
            yield path, 1, 'does not start with "/* %s - what it is"' % os.path.basename(path)


def rule_prefixes(tree):
    for path, s in tree.items():
        if re.search(r'(?i)(^|[^a-z0-9])fq_', os.path.basename(path)):
            yield path, 1, 'fq_ stands for two methods: write flattenquant or flatquant'
        if not is_c(path) and not is_build_file(path):
            continue
        for n, line in enumerate(s.code_lines, 1):
            if re.search(r'(?i)(?<![a-z0-9])fq_', line) and path != 'tools/style.py':
                yield path, n, 'fq_ stands for two methods: write flattenquant or flatquant'
        if top(path) == 'src' and room(path) != 'kernels' and path.endswith('.c'):
            for f in functions(s):
                if f.static == f.name.startswith('fl_'):
                    yield path, f.line, '%s: prefix fl_ unless static' % f.name


def rule_types(tree):
    for path, s in tree.items():
        if is_c(path):
            for n, line in enumerate(s.code_lines, 1):
                if re.match(r'(typedef\b.*\b|\}\s*)\w+_t;', line):
                    yield path, n, 'no _t in names of types'


def rule_dead_code(tree):
    for path, s in tree.items():
        if is_c(path):
            for n, line in enumerate(s.code_lines, 1):
                if re.match(r'\s*#\s*(el)?if\s+0\b', line):
                    yield path, n, '#if 0'


def rule_open_ends(tree):
    for path, s in tree.items():
        if is_text(path) and not path.endswith('.md') and path != 'tools/style.py':
            for n, line in enumerate(s.lines, 1):
                match = re.search(r'\b(TODO|FIXME|XXX)\b', line)
                if match:
                    yield path, n, match.group(1)


def rule_build_flags(tree):
    for path, s in tree.items():
        if not is_build_file(path):
            continue
        for n, line in enumerate(s.lines, 1):
            match = re.search(r'-march=native|-mtune=native|-ffast-math|-Ofast', line)
            if match and not line.lstrip().startswith('#'):
                yield path, n, match.group(0)


RULES = [(name[5:].replace('_', '-'), rule) for name, rule in list(globals().items())
         if name.startswith('rule_')]


def check(files):
    tree = {path: Source(path, text) for path, text in files.items()}
    return [(path, line, name, text) for name, rule in RULES for path, line, text in rule(tree)]


# ---- self-test -----------------------------------------------------------------------------

def c_file(path, body=''):
    return {path: '/* %s - what it is.\n * SPDX-License-Identifier: MIT */\n%s'
                  % (os.path.basename(path), body)}


def long_function(n, head='void fl__f(void)', comment=''):
    return '%s%s\n{\n%s}\n' % (comment, head, '    g();\n' * (n - 2))


CLEAN = {}
for _part in (
        c_file('include/flatiron/flatiron.h', '#ifdef __cplusplus\nextern "C" {\n#endif\n'),
        c_file('src/base/mem.c', '#include "base/mem.h"\n'
               'static int f(void)\n{\n    free(p);\n    g(&(fl_exec){1});\n}\n'),
        c_file('src/base/mem.h'),
        c_file('src/base/exec.c', '#pragma omp parallel for\n'),
        c_file('src/quant/gptq.c', '#include "model/model.h"\n#include "quant/gptq.h"\n'
               '/* exit(1); printf("x"), TO DO */\nconst char *s = "malloc(3)";\n'
               'void fl__x(void)\n{\n    fl__free(&p);\n    it->free(p);\n}\n'),
        c_file('src/quant/flattenquant/flattenquant_plan.c', '#include "quant/gptq.h"\n'),
        c_file('src/kernels/x86/gemm_w8a8_4x16_avx2.c',
               long_function(200, 'void gemm_w8a8_4x16_avx2(void)') + '#pragma omp simd\n'),
        c_file('src/text/tokenizer.c',
               long_function(200, comment='/* State machine of the pre-tokeniser. */\n')
               + long_function(80)),
        c_file('src/kernels/onednn.c', '#include <oneapi/dnnl/dnnl.h>\n#include <omp.h>\n'),
        c_file('cli/main.c', '#include <flatiron/flatiron.h>\n#include "cli.h"\n'
               'int main(void)\n{\n    printf("%s", getenv("NO_COLOR"));\n}\n'),
        c_file('tests/unit/test_mem.c', 'char p[] = "/tmp/t.XXXXXX";\n'),
        {'Makefile': 'build:\n\t@cmake\n', 'tools/a.sh': '# no -march=native\n'}):
    CLEAN.update(_part)

BAD = [
    ('include-arrows', c_file('src/base/a.c', '#include "text/tokenizer.h"\n')),
    ('include-arrows', c_file('src/text/a.c', '#include "format/safetensors.h"\n')),
    ('include-arrows', c_file('src/format/a.c', '#include "kernels/gemm.h"\n')),
    ('include-arrows', c_file('src/kernels/a.c', '#include "model/model.h"\n')),
    ('include-arrows', c_file('src/model/a.c', '#include "quant/gptq.h"\n')),
    ('include-arrows', c_file('src/quant/a.c', '#include "eval/ppl.h"\n')),
    ('include-arrows', c_file('src/eval/a.c', '#include "api/engine.h"\n')),
    ('include-arrows', c_file('src/dist/a.c', '#include "api/engine.h"\n')),
    ('include-arrows', c_file('src/model/a.c', '#include "model.h"\n')),
    ('include-arrows', c_file('src/model/a.c', '#include "../base/mem.h"\n')),
    ('include-arrows', c_file('src/stuff/a.c', '#include "base/mem.h"\n')),
    ('include-arrows', c_file('src/quant/flattenquant/a.c',
                              '#include "quant/flatquant/b.h"\n')),
    ('include-arrows', c_file('src/quant/flatquant/a.c',
                              '#include "quant/flattenquant/b.h"\n')),
    ('include-arrows', c_file('cli/a.c', '#include "base/mem.h"\n')),
    ('include-arrows', c_file('cli/a.c', '#include "../src/base/mem.h"\n')),
    ('include-arrows', c_file('tests/unit/a.c', '#include "lab/gemm_v3.h"\n')),
    ('one-onednn-file', c_file('src/quant/a.c', '#include <dnnl.h>\n')),
    ('openmp-in-base', c_file('src/kernels/onednn.c', '#include <dnnl.h>\n'
                              '#pragma omp parallel\n')),
    ('openmp-in-base', c_file('src/model/a.c', '#pragma omp parallel for\n')),
    ('openmp-in-base', c_file('src/model/a.c', '#include <omp.h>\n')),
    ('file-length', c_file('src/base/a.c', 'int a;\n' * 999)),
    ('function-length', c_file('src/model/a.c', long_function(81))),
    ('function-length', c_file('src/model/a.c', 'int x = 1;\n' + long_function(
        81, 'static void f(struct a *b,\n              int c)'))),
    ('function-length', c_file('src/kernels/ref/a.c', long_function(201))),
    ('function-length', c_file('src/text/a.c', long_function(
        201, comment='/* State machine. */\n'))),
    ('columns', c_file('src/base/a.c', '/* %s */\n' % ('x' * 91))),
    ('columns', {'tools/a.sh': 'x' * 97 + '\n'}),
    ('whitespace', c_file('src/base/a.c', '\tint a;\n')),
    ('whitespace', c_file('src/base/a.c', 'int a; \n')),
    ('whitespace', c_file('src/base/a.c', 'int a;')),
    ('whitespace', {'Makefile': 'a:\n\tb\tc\n'}),
    ('spacing', c_file('src/base/a.c', 'static int f(void)\n{\n    if(x) y();\n}\n')),
    ('spacing', c_file('src/base/a.c', 'static int f(void) {\n}\n')),
    ('unique-names', c_file('cli/mem.c')),
    ('unique-names', c_file('src/model/mem.h')),
    ('first-comment', {'src/base/a.c': 'int a;\n'}),
    ('first-comment', {'src/base/a.c': '/* b.c - x. SPDX-License-Identifier: MIT */\n'}),
    ('first-comment', {'src/base/a.c': '/* a.c - x. */\n/* SPDX-License-Identifier: MIT */\n'}),
    ('prefixes', c_file('src/base/a.c', 'int fq_scale;\n')),
    ('prefixes', c_file('src/base/a.c', 'int fl_FQ_scale;\n')),
    ('prefixes', c_file('src/base/fq_plan.c')),
    ('prefixes', c_file('src/base/a.c', 'int visible(void)\n{\n}\n')),
    ('prefixes', c_file('src/base/a.c', 'static int fl__hidden(void)\n{\n}\n')),
    ('types', c_file('src/base/a.h', 'typedef struct x x_t;\n')),
    ('types', c_file('src/base/a.h', 'typedef struct {\n    int a;\n} x_t;\n')),
    ('dead-code', c_file('src/base/a.c', '#if 0\n#endif\n')),
    ('open-ends', c_file('src/base/a.c', '/* TODO: all of it */\n')),
    ('open-ends', {'tools/a.sh': 'true # FIXME\n'}),
    ('open-ends', {'CMakeLists.txt': '# XXX\n'}),
    ('build-flags', {'CMakeLists.txt': 'add_compile_options(-march=native)\n'}),
    ('build-flags', {'Makefile': 'CFLAGS += -O2 -ffast-math\n'}),
]
for _name in 'strcpy strcat sprintf vsprintf atoi atof strtok'.split():
    BAD.append(('banned-calls', c_file('tests/unit/a.c', 'int x = %s(y);\n' % _name)))
for _name in 'exit abort getenv malloc calloc realloc free printf strdup'.split():
    BAD.append(('banned-calls', c_file('src/model/a.c', 'int x = %s (y);\n' % _name)))
BAD.append(('banned-calls', c_file('src/base/a.c', 'int x = fprintf(stderr, "");\n')))
BAD.append(('banned-calls', c_file('src/base/a.c', 'int x = abort();\n')))


def self_test():
    failed = ['flags clean code: %s:%d: %s: %s' % finding for finding in check(CLEAN)][:1]
    for rule, snippet in BAD:
        flagged = {name for _, _, name, _ in check({**CLEAN, **snippet})}
        if flagged != {rule}:
            failed.append('%s: flagged %s: %r' % (rule, sorted(flagged), snippet))
    failed += ['%s: no snippet' % name for name, _ in RULES if name not in dict(BAD)]
    for text in failed:
        print('FAILED: ' + text)
    n_tests = 1 + len(BAD) + len(RULES)
    print('%d passed, %d failed, 0 skipped' % (n_tests - len(failed), len(failed)))
    return len(failed) != 0


# ---- the tree ------------------------------------------------------------------------------

def tree_files():
    """What git would commit; without git, all but build directories."""
    try:
        out = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], check=True,
                             capture_output=True).stdout.decode()
        return [path for path in out.split('\0') if path and os.path.isfile(path)]
    except (OSError, subprocess.CalledProcessError):
        found = []
        for where, dirs, names in os.walk('.'):
            dirs[:] = [d for d in dirs if d != '.git' and not d.startswith('build')]
            found += [os.path.relpath(os.path.join(where, name), '.') for name in names]
        return found


def main():
    if sys.argv[1:] == ['--self-test']:
        return self_test()
    if sys.argv[1:]:
        print('usage: tools/style.py [--self-test]')
        return 2
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
    files = {}
    for path in tree_files():
        if is_text(path):
            with open(path, encoding='utf-8', errors='replace') as f:
                files[path] = f.read()
    findings = sorted(check(files))
    for finding in findings:
        print('%s:%d: %s: %s' % finding)
    for path in sorted(files):
        n = files[path].count('\n')
        if is_c(path) and FILE_LINES_AIM < n <= FILE_LINES:
            print('%s:%d: note: %d lines, aim for %d' % (path, n, n, FILE_LINES_AIM))
    print('style: %d files, %d rules, %d findings' % (len(files), len(RULES), len(findings)))
    return 1 if findings or not files else 0


if __name__ == '__main__':
    sys.exit(main())
