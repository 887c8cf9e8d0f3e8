#!/usr/bin/env python3
"""tokenizer_parity.py - compares our tokenizer with Hugging Face's `tokenizers`, id by id.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install -r tools/requirements.txt
    cmake --build build --target encode_lines
    /tmp/venv/bin/python tools/tokenizer_parity.py [--lines 10000] [--seed 0] [--shared DIR]

It makes seeded lines of mixed scripts, emoji, digits, white space, combining marks and broken
UTF-8, encodes them with both, with and without special tokens, and decodes the ids with both.
The tokenizers compared are those of the shared models and data, and some put together here so
that every row of src/text's tables takes part. Broken UTF-8 counts as what
line.decode('utf-8', 'replace') makes of it.

A line whose ids differ is compared again without the code points on which the Unicode versions
differ: ours are 14.0 (PCRE2 10.42) and 15.0 (utf8proc 2.8), theirs are newer or older; which
code points these are is measured first, with Python 3.11's tables (14.0) in between. If that
mends it, the difference is due to the Unicode version, else it is unexplained. Exit status 1
when any difference is unexplained.
SPDX-License-Identifier: MIT"""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REFUSED = 0xFFFFFFFF

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
            r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

# ---- lines -----------------------------------------------------------------------------------

RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x2FF), (0x370, 0x3FF), (0x400, 0x52F),
          (0x531, 0x58F), (0x5D0, 0x5EA), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF),
          (0xB80, 0xBFF), (0xE01, 0xE5B), (0xF00, 0xFDA), (0x10A0, 0x10FF),
          (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FD), (0x1780, 0x17F9),
          (0x1800, 0x18AA), (0x1E00, 0x1FFF), (0x2010, 0x205F), (0x2070, 0x20C0),
          (0x2100, 0x218B), (0x2190, 0x23FF), (0x2460, 0x27BF), (0x3001, 0x30FF),
          (0x3131, 0x318E), (0x4E00, 0x9FFF), (0xA000, 0xA48C), (0xAC00, 0xD7A3),
          (0xF900, 0xFAD9), (0xFB00, 0xFB4F), (0xFE70, 0xFEFC), (0xFF01, 0xFFEE),
          (0x10330, 0x1034A), (0x1D400, 0x1D7FF), (0x1F000, 0x1F0FF), (0x20000, 0x2A6DF)]
SPACES = [' ', '  ', '   ', '\t', '\n', '\r\n', '\n\n', '\v', '\f', '\x85', '\xa0',
          '\u1680', '\u180e', '\u2003', '\u200b', '\u2028', '\u2029', '\u202f', '\u205f',
          '\u3000', '\ufeff']
EMOJI = ['😀', '👍🏽', '👩‍👩‍👧‍👦', '🇩🇪', '❤️', '🏳️‍🌈', '1️⃣', '🤷🏾‍♀️', '🧑‍🚀', '™️', '☎', '🀄',
         '🪿', '🫨']
DIGITS = ['0', '12', '345', '67890', '1234567', '3.14159', '1,000,000', '٣٤٥', '१२३',
          '１２３', '²³', '½', 'Ⅷ', '①', '〇', '𝟘𝟙', '௧௨', '0x1F600', '1e-9']
MARKS = ['\u0301', '\u0300', '\u0323', '\u0327', '\u030a', '\u093c', '\u0e49', '\u20dd',
         '\u3099', '\u05b0', '\u0653', '\u0f71', '\u1ab0', '\U0001e8d0']
BAD_BYTES = [0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0xED, 0xA0, 0xF0, 0x9F, 0xF4, 0x90, 0xF8, 0xFF]
WORDS = ["the", "quick", "I'll", "don't", "WE'VE", "they'Re", "x'ſ", "it's", "naïve",
         "Ångström", "Straße", "ﬁne", "İstanbul", "ΣΊΣΥΦΟΣ", "ǅ", "größe",
         "e\u0301te\u0301", "한국어", "日本語", "ไทย", "हिन्दी", "العربية", "עִבְרִית", "кошка",
         "for(i=0;i<n;i++)", "a_b-c", "http://x.y/?z=1", "<s>", "</s>", "<unk>",
         "<|endoftext|>", "<pad>", "<|x|>", "[MASK]", "[mask]", "ﷺ", "Å", "ſ"]


def random_part(rng):
    kind = rng.randrange(12)
    if kind < 3:
        return rng.choice(WORDS)
    if kind < 5:
        low, high = rng.choice(RANGES)
        return ''.join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))
    if kind == 5:
        return ''.join(rng.choice(SPACES) for _ in range(rng.randint(1, 6)))
    if kind == 6:
        return rng.choice(SPACES) * rng.randint(1, 20)
    if kind == 7:
        return rng.choice(EMOJI) * rng.randint(1, 3)
    if kind == 8:
        return rng.choice(DIGITS)
    if kind == 9:
        return rng.choice('aeoAkKかशกא') + ''.join(rng.choice(MARKS)
                                                 for _ in range(rng.randint(1, 5)))
    if kind == 10:
        return ''.join(rng.choice('.,;:!?\'"()[]{}<>|/\\@#$%^&*-_=+~`') for _ in range(
            rng.randint(1, 6)))
    return ' ' + rng.choice(WORDS).lower()


def any_char(rng):
    while True:
        cp = rng.randrange(rng.choice([0x3000, 0x20000, 0x110000]))
        if not 0xD800 <= cp < 0xE000:
            return chr(cp)


def break_bytes(rng, line):
    line = bytearray(line)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(line) + 1)
        if rng.randrange(3) == 0:
            del line[at:at + rng.randint(1, 2)]
        else:
            line[at:at] = bytes(rng.choice(BAD_BYTES + [rng.randrange(256)])
                                for _ in range(rng.randint(1, 3)))
    return bytes(line)


def make_lines(n, seed):
    rng = random.Random(seed)
    lines = [b'', b' ', b'\n', b'a']
    while len(lines) < n:
        parts = [random_part(rng) for _ in range(rng.randint(1, 10))]
        if rng.randrange(25) == 0:
            parts += [any_char(rng) for _ in range(rng.randint(1, 4))]
        rng.shuffle(parts)
        line = rng.choice(['', ' ']).join(parts).encode('utf-8')
        if rng.randrange(6) == 0:
            line = break_bytes(rng, line)
        lines.append(line)
    return lines


# ---- tokenizers ------------------------------------------------------------------------------

def byte_level(tokenizer, regex, behavior='isolated'):
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), behavior, False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_merges(path):
    with open(path, encoding='utf-8') as f:
        lines = f.read().split('\n')
    return [tuple(x.split(' ')) for x in lines if x and not x.startswith('#version')]


def read_bpe(directory, **options):
    with open(os.path.join(directory, 'vocab.json'), encoding='utf-8') as f:
        vocab = json.load(f)
    return Tokenizer(models.BPE(vocab, read_merges(os.path.join(directory, 'merges.txt')),
                                **options))


def learn(lines):
    """A small BPE vocabulary over characters, by counting pairs: (characters, merges)."""
    words = [list(w) for line in lines[:400] for w in
             line.decode('utf-8', 'replace').replace(' ', '▁').split('▁') if w][:1500]
    characters = sorted({c for w in words for c in w if c < '\u3000'} | {'▁'})
    known, merges = set(characters), []
    for _ in range(200):
        counts = {}
        for w in words:
            for pair in zip(w, w[1:]):
                if pair[0] in known and pair[1] in known:
                    counts[pair] = counts.get(pair, 0) + 1
        best = max(sorted(counts), key=counts.get)
        merges.append(best)
        known.add(best[0] + best[1])
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best:
                    w[i:i + 2] = [best[0] + best[1]]
                i += 1
    return characters, merges


def small_bpe(learnt, more, **options):
    characters, merges = learnt
    vocab = ['<unk>', '<s>', '</s>'] + more + characters + [a + b for a, b in merges]
    vocab = list(dict.fromkeys(vocab))
    return Tokenizer(models.BPE({t: i for i, t in enumerate(vocab)}, merges, **options))


ADDED = [AddedToken('<|x|>', special=True),
         AddedToken('[MASK]', lstrip=True, special=False),
         AddedToken('quick', single_word=True, rstrip=True), AddedToken('ÅNGSTRÖM'),
         AddedToken('the', single_word=True, normalized=False),
         AddedToken('  ', normalized=False), AddedToken('٣٤', lstrip=True, rstrip=True)]


def llama2_like(learnt):
    byte_tokens = ['<0x%02X>' % i for i in range(256)]
    t = small_bpe(learnt, byte_tokens, unk_token='<unk>', fuse_unk=True, byte_fallback=True)
    t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'),
                                         normalizers.Replace(' ', '▁')])
    t.post_processor = processors.TemplateProcessing(
        single='<s> $A </s>', pair='<s> $A $B </s>', special_tokens=[('<s>', 1), ('</s>', 2)])
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    t.add_special_tokens(['<unk>', '<s>', '</s>'])
    return t


def gallery(lines, gpt2):
    """(name, tokenizer) of every row of our tables, over GPT-2's vocabulary or a small one."""
    learnt = learn(lines)
    yield 'llama2-like: Prepend, Replace, byte fallback', llama2_like(learnt)
    for name, regex in [('GPT-4o', GPT4O), ('DeepSeek', DEEPSEEK), ('BLOOM', BLOOM)]:
        yield 'regex of ' + name, byte_level(read_bpe(gpt2), regex)
    for behavior in ['removed', 'isolated', 'merged_with_previous', 'merged_with_next',
                     'contiguous']:
        t = byte_level(read_bpe(gpt2), r'\d|[aeiou]|\s', behavior)
        yield 'Split ' + behavior, t
        t = byte_level(read_bpe(gpt2), '.')
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split('e', behavior, True),
            pre_tokenizers.Punctuation(behavior),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
        yield 'String Split, Punctuation ' + behavior, t
    unk = dict(unk_token='<unk>', fuse_unk=False)
    for name, pre in [('Whitespace', pre_tokenizers.Whitespace()),
                      ('WhitespaceSplit', pre_tokenizers.WhitespaceSplit()),
                      ('Digits individual', pre_tokenizers.Digits(True)),
                      ('Digits', pre_tokenizers.Digits(False))]:
        t = small_bpe(learnt, [], **unk)
        t.pre_tokenizer = pre
        yield name + ', unk', t
    for name, norm in [('NFC', normalizers.NFC()), ('NFD', normalizers.NFD()),
                       ('NFKC', normalizers.NFKC()), ('NFKD', normalizers.NFKD()),
                       ('Lowercase', normalizers.Lowercase()), ('Strip', normalizers.Strip()),
                       ('Replace', normalizers.Replace(Regex(r'\s+'), ' '))]:
        t = byte_level(read_bpe(gpt2, ignore_merges=True), QWEN2)
        t.normalizer = norm
        t.add_tokens(ADDED)
        yield name + ', added tokens, ignore_merges', t
    t = small_bpe(learnt, [], unk_token='<unk>', fuse_unk=True)
    t.add_tokens(ADDED)
    yield 'fuse_unk, added tokens, no decoder', t


def copy_files(source, names, target, config):
    for name in names:
        shutil.copy(os.path.join(source, name), target)
        os.chmod(os.path.join(target, name), 0o644)
    if config is not None:
        with open(os.path.join(target, 'tokenizer_config.json'), 'w', encoding='utf-8') as f:
            json.dump(config, f)


def cases(shared, lines, new_dir):
    """(name, directory for us, tokenizer)"""
    gpt2 = os.path.join(shared, 'data/tokenizers/gpt2')
    llama3 = os.path.join(shared, 'data/tokenizers/llama3')
    for model in ['llama-28m', 'llama-2m', 'opt-27m', 'opt-2m']:
        path = os.path.join(shared, 'models', model)
        yield model, path, Tokenizer.from_file(os.path.join(path, 'tokenizer.json'))
    gpt2_json = Tokenizer.from_file(os.path.join(gpt2, 'tokenizer.json'))
    yield 'gpt2', gpt2, gpt2_json
    files = ['vocab.json', 'merges.txt']
    target = new_dir()
    copy_files(gpt2, files, target, None)
    yield 'gpt2 vocab.json + merges.txt', target, gpt2_json
    target = new_dir()
    copy_files(gpt2, files, target, {'tokenizer_class': 'Qwen2Tokenizer'})
    qwen = byte_level(read_bpe(gpt2), QWEN2)
    qwen.normalizer = normalizers.NFC()
    qwen.add_special_tokens(['<|endoftext|>'])
    yield 'Qwen2Tokenizer over gpt2 files', target, qwen
    target = new_dir()
    copy_files(llama3, files, target, {'tokenizer_class': 'PreTrainedTokenizerFast'})
    yield 'llama3', target, byte_level(read_bpe(llama3, ignore_merges=True), LLAMA3)
    for name, tokenizer in gallery(lines, gpt2):
        target = new_dir()
        tokenizer.save(os.path.join(target, 'tokenizer.json'))
        yield name, target, Tokenizer.from_file(os.path.join(target, 'tokenizer.json'))


# ---- comparison ------------------------------------------------------------------------------

def run_tool(tool, mode, directory, records, unit):
    data = b''.join(struct.pack('<I', len(r) // unit) + r for r in records)
    p = subprocess.run([tool, mode, directory], input=data, stdout=subprocess.PIPE, check=True)
    out, at, width = [], 0, 4 if mode.startswith('encode') else 1
    while at < len(p.stdout):
        n, = struct.unpack_from('<I', p.stdout, at)
        at += 4
        if n == REFUSED:
            out.append(None)
            continue
        out.append(p.stdout[at:at + n * width])
        at += n * width
    return out


def unpack(record):
    return None if record is None else list(struct.unpack('<%di' % (len(record) // 4), record))


def split_members(pre_tokenizer, text):
    """The characters of text that a pre-tokeniser removes."""
    return set(text) - set(''.join(part for part, _ in pre_tokenizer.pre_tokenize_str(text)))


def versions_differ():
    """Code points on which Unicode 14 (Python's) and the tables of `tokenizers` disagree:
    those not assigned in 14, and those that its older tables do not know. Its regular
    expressions, its Punctuation and its normal forms come from sources with a version each."""
    every = ''.join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    found = {'not in Unicode 14': {c for c in every if unicodedata.category(c) == 'Cn'}}
    known = [c for c in every if unicodedata.category(c) != 'Cn']
    theirs = split_members(pre_tokenizers.Punctuation('removed'), every)
    ascii_too = {c for c in '$+<=>^`|~'}
    found['Punctuation'] = {c for c in known if (c in theirs) !=
                            (unicodedata.category(c)[0] == 'P' or c in ascii_too)}
    for name, categories in [('L', 'L'), ('N', 'N'), ('M', 'M'), ('P', 'P'), ('S', 'S')]:
        theirs = split_members(pre_tokenizers.Split(Regex(r'\p{%s}' % name), 'removed'), every)
        found['\\p{%s}' % name] = {c for c in known if (c in theirs) !=
                                   (unicodedata.category(c)[0] == categories)}
    for form in ['NFC', 'NFD', 'NFKC', 'NFKD']:
        normalizer = getattr(normalizers, form)()
        found[form] = {c for c in known if normalizer.normalize_str(c) !=
                       unicodedata.normalize(form, c)}
        # Two marks in either order show a difference in their combining classes.
        marks = [c for c in known if unicodedata.category(c)[0] == 'M']
        found[form] |= {c for c in marks for other in '\u0315\u0327\u0345' for text in
                        ['a' + c + other, 'a' + other + c] if normalizer.normalize_str(text) !=
                        unicodedata.normalize(form, text)}
    return found


def without(line, characters):
    text = line.decode('utf-8', 'replace')
    return ''.join(c for c in text if c not in characters).encode('utf-8')


def compare_encode(tool, directory, tokenizer, lines, special):
    mode = 'encode-special' if special else 'encode'
    ours = [unpack(r) for r in run_tool(tool, mode, directory, lines, 1)]
    texts = [line.decode('utf-8', 'replace') for line in lines]
    theirs = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=special)]
    return [i for i in range(len(lines)) if ours[i] != theirs[i]], theirs


def compare_decode(tool, directory, tokenizer, ids, skip):
    records = [struct.pack('<%di' % len(x), *x) for x in ids]
    ours = run_tool(tool, 'decode-skip' if skip else 'decode', directory, records, 4)
    theirs = [tokenizer.decode(x, skip_special_tokens=skip).encode('utf-8') for x in ids]
    return [i for i in range(len(ids)) if ours[i] != theirs[i]]


def random_ids(tokenizer, rng, n):
    size = tokenizer.get_vocab_size()
    return [[rng.randrange(size) for _ in range(rng.randint(0, 12))] for _ in range(n)]


def compare(args, name, directory, tokenizer, lines, newer):
    """Returns (lines that differ, of these due to the Unicode version, decode differences)."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    differ, ids = compare_encode(args.tool, directory, tokenizer, lines, False)
    with_special, _ = compare_encode(args.tool, directory, tokenizer, lines, True)
    differ = sorted(set(differ) | set(with_special))
    again, _ = compare_encode(args.tool, directory, tokenizer,
                              [without(lines[i], newer) for i in differ], True)
    unexplained = [differ[k] for k in again]
    ids = ids + random_ids(tokenizer, random.Random(args.seed), len(ids) // 4)
    bad = compare_decode(args.tool, directory, tokenizer, ids, False)
    bad += compare_decode(args.tool, directory, tokenizer, ids, True)
    print('%-48s %6d lines: %4d differ, %4d by Unicode version, %d unexplained; decode: %d of '
          '%d differ' % (name[:48], len(lines), len(differ), len(differ) - len(unexplained),
                         len(unexplained), len(bad), 2 * len(ids)), flush=True)
    for i in unexplained[:args.show]:
        print('  unexplained: %r' % lines[i])
    for i in bad[:args.show]:
        print('  decode: %r' % ids[i])
    if args.verbose:
        for i in differ:
            new = sorted({'U+%04X' % ord(c) for c in lines[i].decode('utf-8', 'replace')
                          if c in newer})
            print('  line %d: %s' % (i, ' '.join(new) or 'unexplained'))
    return len(differ), len(differ) - len(unexplained), len(bad)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--lines', type=int, default=10000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--shared', default=os.path.join(ROOT, '../shared'))
    parser.add_argument('--tool', default=os.path.join(ROOT, 'build/encode_lines'))
    parser.add_argument('--only', default='', help='tokenizers whose name contains this')
    parser.add_argument('--show', type=int, default=5, help='unexplained lines to print')
    parser.add_argument('--verbose', action='store_true', help='the cause of every difference')
    args = parser.parse_args()
    if unicodedata.unidata_version != '14.0.0':
        print('note: this Python knows Unicode %s; differences are attributed with its tables, '
              'not those of 14.0' % unicodedata.unidata_version)
    lines = make_lines(args.lines, args.seed)
    found = versions_differ()
    newer = set().union(*found.values())
    print('code points on which the Unicode versions differ: ' + ', '.join(
        '%s %d' % (name, len(characters)) for name, characters in found.items()))
    n_cases = n_bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, directory, tokenizer in cases(args.shared, lines,
                                                lambda: tempfile.mkdtemp(dir=scratch)):
            if args.only not in name:
                continue
            differ, by_version, decode = compare(args, name, directory, tokenizer, lines,
                                                 newer)
            n_cases += 1
            n_bad += differ != by_version or decode > 0
    print('%d passed, %d failed, 0 skipped' % (n_cases - n_bad, n_bad))
    return 1 if n_bad or n_cases == 0 else 0


if __name__ == '__main__':
    sys.exit(main())
