/* regex_translate.c - Oniguruma (Ruby syntax, UTF-8) regular expressions in PCRE2's words.
 *
 * The two agree on most of what pre-tokenisers use, and differ silently on the rest. What is
 * handled:
 *   \s \S     PCRE2 counts U+180E as a space. Written out as White_Space.
 *   \w \W     PCRE2 10.42 leaves out marks and most of Pc. Written out as L, M, N, Pc.
 *   \h \v     a hexadecimal digit and U+000B here, horizontal and vertical space in PCRE2.
 *   [a[b]]    a union in Oniguruma, a literal '[' in PCRE2. Members of all levels go into one
 *             class, every character as \x{..}, so that none has a second meaning.
 *   ( )       nothing refers back, so groups need not capture.
 *   {,n}      from 0 to n here, literal text in PCRE2 10.42.
 * Refused, because the two differ or because no tokenizer needs it: '&&' and negated classes
 * inside classes, POSIX brackets, back references, named groups, '^' and '$' and other anchors,
 * {n,m}+ (a plain repetition here, possessive in PCRE2), {n}? and repeated quantifiers, options
 * other than (?i), and under (?i) whatever folds to or from several characters (Oniguruma
 * matches (?i:ss) with U+00DF).
 * General categories are the same in both; scripts by name become \p{sc:...}, since PCRE2 would
 * otherwise test script extensions.
 * SPDX-License-Identifier: MIT */
#include "text/pattern.h"

#include "base/status.h"
#include "text/unicode.h"

#include <stdio.h>
#include <string.h>

enum { MAX_GROUPS = 64 };

#define SPACES                                                                                 \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"         \
    "\\x{202f}\\x{205f}\\x{3000}"
#define NO_SPACES                                                                              \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"               \
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"             \
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

/* Escapes that stand for a set, as members of a class. */
static const struct {
    char letter;
    const char *members;
} sets[] = {
    {'s', SPACES},
    {'S', NO_SPACES},
    {'d', "\\p{Nd}"},
    {'D', "\\P{Nd}"},
    {'w', "\\p{L}\\p{M}\\p{N}\\p{Pc}"},
    {'W', "\\p{C}\\p{Pd}\\p{Ps}\\p{Pe}\\p{Pi}\\p{Pf}\\p{Po}\\p{S}\\p{Z}"},
    {'h', "0-9a-fA-F"},
};

/* Escapes that stand for one character. */
static const struct {
    char letter;
    char character;
} controls[] = {
    {'t', '\t'}, {'n', '\n'}, {'r', '\r'}, {'f', '\f'}, {'v', '\v'}, {'a', '\a'}, {'e', 0x1B},
};

typedef struct group {
    bool caseless, look; /* look: a look-around, which must not be repeated */
} group;

typedef struct translation {
    const char *in;
    size_t n_bytes, at;
    fl_text_buf *out;
    const char *why; /* what went wrong */
    bool no_memory;
    bool caseless;
    bool atom;     /* the last thing may be repeated */
    char previous; /* the last literal ASCII letter, lower case, or 0 */
    group groups[MAX_GROUPS];
    int n_groups;
} translation;

/* One member of a class or one escape: a character, or a set written as class members. */
typedef struct item {
    int32_t cp; /* < 0: a set */
    char set[288];
} item;

static bool fail(translation *t, const char *why)
{
    if (!t->why) t->why = why;
    return false;
}

static bool put(translation *t, const char *s)
{
    if (fl__text_buf_append(t->out, s, strlen(s))) {
        t->no_memory = true;
        return fail(t, "out of memory");
    }
    return true;
}

static bool put_char(translation *t, int32_t cp)
{
    char text[16];
    (void)snprintf(text, sizeof text, "\\x{%x}", (unsigned)cp);
    return put(t, text);
}

/* Byte at offset ahead, '\0' behind the end (the pattern holds no NUL). */
static char peek(const translation *t, size_t ahead)
{
    return ahead < t->n_bytes - t->at ? t->in[t->at + ahead] : '\0';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int hex_value(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool valid_scalar(int32_t cp)
{
    return cp >= 0 && cp <= 0x10FFFF && (cp < 0xD800 || cp > 0xDFFF);
}

/* \x41 and \x{1F600}; a two-digit value from 80 on would be a byte, not a character. */
static bool read_hex(translation *t, item *it)
{
    int32_t cp = 0;
    int n = 0;
    const bool braces = peek(t, 0) == '{';
    if (braces) t->at++;
    for (; hex_value(peek(t, 0)) >= 0 && n < (braces ? 6 : 2); n++, t->at++)
        cp = cp * 16 + hex_value(peek(t, 0));
    if (n == 0 || (braces && peek(t, 0) != '}')) return fail(t, "a bad \\x escape");
    if (braces) t->at++;
    if (!valid_scalar(cp) || (!braces && cp > 0x7F)) return fail(t, "a bad \\x escape");
    it->cp = cp;
    return true;
}

static bool read_u(translation *t, item *it)
{
    int32_t cp = 0;
    for (int i = 0; i < 4; i++, t->at++) {
        if (hex_value(peek(t, 0)) < 0) return fail(t, "a bad \\u escape");
        cp = cp * 16 + hex_value(peek(t, 0));
    }
    if (!valid_scalar(cp)) return fail(t, "a bad \\u escape");
    it->cp = cp;
    return true;
}

/* \p{L}, \P{Nd}, \p{^Han}: t->at is behind the letter. */
static bool read_property(translation *t, item *it, bool negated)
{
    char name[40];
    size_t n = 0;
    if (peek(t, 0) != '{') return fail(t, "a bad \\p escape");
    t->at++;
    if (peek(t, 0) == '^') {
        negated = !negated;
        t->at++;
    }
    while ((is_letter(peek(t, 0)) || peek(t, 0) == '_') && n + 1 < sizeof name)
        name[n++] = t->in[t->at++];
    name[n] = '\0';
    if (n == 0 || peek(t, 0) != '}') return fail(t, "a property that is not known");
    t->at++;
    const bool category = n <= 2 && strchr("LMNPSZC", name[0]) != NULL;
    if (n <= 2 && !category) return fail(t, "a property that is not known");
    if (t->caseless && (!category || name[0] == 'L'))
        return fail(t, "letter properties under (?i)");
    it->cp = -1;
    (void)snprintf(it->set, sizeof it->set, "\\%c{%s%s}", negated ? 'P' : 'p',
                   category ? "" : "sc:", name);
    return true;
}

/* Reads what follows a backslash. */
static bool read_escape(translation *t, item *it)
{
    const char c = peek(t, 0);
    if (c == '\0') return fail(t, "a backslash at the end");
    if (!is_letter(c) && !is_digit(c)) {
        const fl_utf8_char u = fl__utf8_read(t->in + t->at, t->n_bytes - t->at);
        t->at += (size_t)u.n_bytes;
        it->cp = u.cp;
        return true;
    }
    t->at++;
    if (c == 'x') return read_hex(t, it);
    if (c == 'u') return read_u(t, it);
    if (c == 'p' || c == 'P') return read_property(t, it, c == 'P');
    for (size_t i = 0; i < FL_COUNT(controls); i++) {
        if (controls[i].letter != c) continue;
        it->cp = controls[i].character;
        return true;
    }
    for (size_t i = 0; i < FL_COUNT(sets); i++) {
        if (sets[i].letter != c) continue;
        it->cp = -1;
        (void)snprintf(it->set, sizeof it->set, "%s", sets[i].members);
        return true;
    }
    t->at--;
    return fail(t, "an escape that is not known");
}

/* ---- classes ----------------------------------------------------------------------------- */

static bool read_member(translation *t, item *it)
{
    if (peek(t, 0) == '\\') {
        t->at++;
        return read_escape(t, it);
    }
    const fl_utf8_char u = fl__utf8_read(t->in + t->at, t->n_bytes - t->at);
    t->at += (size_t)u.n_bytes;
    it->cp = u.cp;
    return true;
}

/* One character, set or range inside a class. */
static bool put_member(translation *t)
{
    item low = {0}, high = {0};
    if (peek(t, 0) == '&' && peek(t, 1) == '&') return fail(t, "an intersection of classes");
    if (!read_member(t, &low)) return false;
    if (low.cp < 0) return put(t, low.set);
    if (t->caseless && low.cp > 0x7F) return fail(t, "non-ASCII text under (?i)");
    if (!put_char(t, low.cp)) return false;
    if (peek(t, 0) != '-' || peek(t, 1) == ']' || peek(t, 1) == '\0') return true;
    if (peek(t, 1) == '[' || (peek(t, 1) == '&' && peek(t, 2) == '&'))
        return fail(t, "a range that ends in a class");
    t->at++;
    if (!read_member(t, &high)) return false;
    if (high.cp < low.cp) return fail(t, "a range that ends before it starts");
    if (t->caseless && high.cp > 0x7F) return fail(t, "non-ASCII text under (?i)");
    return put(t, "-") && put_char(t, high.cp);
}

/* From behind '[' to behind its ']'. */
static bool put_class(translation *t)
{
    int depth = 1;
    bool first = true;
    if (!put(t, "[")) return false;
    if (peek(t, 0) == '^') {
        t->at++;
        if (!put(t, "^")) return false;
    }
    while (depth > 0) {
        const char c = peek(t, 0);
        if (c == '\0') return fail(t, "a class without end");
        if (c == ']' && first) return fail(t, "an empty class");
        first = c == '[';
        if (c == '[') {
            t->at++;
            if (peek(t, 0) == ':' || peek(t, 0) == '^')
                return fail(t, "a POSIX bracket or a negated class inside a class");
            depth++;
        } else if (c == ']') {
            t->at++;
            depth--;
        } else if (!put_member(t)) {
            return false;
        }
    }
    return put(t, "]");
}

/* ---- everything else --------------------------------------------------------------------- */

/* Reads [digits]; -1 when there are none or too many. */
static int read_count(translation *t)
{
    int n = 0, n_digits = 0;
    for (; is_digit(peek(t, 0)) && n_digits < 5; n_digits++, t->at++)
        n = 10 * n + (t->in[t->at] - '0');
    return n_digits > 0 && !is_digit(peek(t, 0)) ? n : -1;
}

/* {n} {n,} {,m} {n,m} at t->at; anything else is the literal character '{'. */
static bool put_interval(translation *t)
{
    const size_t start = t->at++;
    char text[32];
    const int low = read_count(t);
    const bool comma = peek(t, 0) == ',';
    if (comma) t->at++;
    const int high = comma ? read_count(t) : low;
    if (peek(t, 0) != '}' || (low < 0 && high < 0)) {
        t->at = start + 1;
        t->atom = true;
        t->previous = 0;
        return put_char(t, '{');
    }
    t->at++;
    if (!t->atom) return fail(t, "a repetition of nothing");
    if (high >= 0 && high < FL_MAX(low, 0)) return fail(t, "a repetition of n to fewer times");
    if (peek(t, 0) == '+' || (peek(t, 0) == '?' && low == high))
        return fail(t, "a quantifier behind a repetition");
    if (high < 0) (void)snprintf(text, sizeof text, "{%d,}", low);
    else (void)snprintf(text, sizeof text, "{%d,%d}", FL_MAX(low, 0), high);
    if (!put(t, text)) return false;
    if (peek(t, 0) == '?') {
        t->at++;
        if (!put(t, "?")) return false;
    }
    t->atom = false;
    t->previous = 0;
    return true;
}

/* * + ? with an optional lazy or possessive sign. */
static bool put_quantifier(translation *t)
{
    char text[3] = {t->in[t->at++], '\0', '\0'};
    if (!t->atom) return fail(t, "a repetition of nothing");
    if (peek(t, 0) == '?' || peek(t, 0) == '+') text[1] = t->in[t->at++];
    t->atom = false;
    t->previous = 0;
    return put(t, text);
}

static bool push_group(translation *t, const char *opening, bool caseless, bool look)
{
    if (t->n_groups == MAX_GROUPS) return fail(t, "groups nested too deeply");
    t->groups[t->n_groups++] = (group){t->caseless, look};
    t->caseless = caseless;
    t->atom = false;
    t->previous = 0;
    return put(t, opening);
}

/* (?i: (?-i: and, at the very start of the pattern, (?i) */
static bool open_options(translation *t)
{
    const bool at_start = t->at == 2;
    const bool off = peek(t, 0) == '-';
    if (off) t->at++;
    if (peek(t, 0) != 'i') return fail(t, "a group or option that is not known");
    t->at++;
    if (peek(t, 0) == ':') {
        t->at++;
        return push_group(t, off ? "(?-i:" : "(?i:", !off, false);
    }
    if (peek(t, 0) != ')' || !at_start) return fail(t, "an option in the middle");
    t->at++;
    t->caseless = !off;
    return put(t, off ? "(?-i)" : "(?i)");
}

/* t->at is behind '('. */
static bool open_group(translation *t)
{
    static const struct {
        const char *opening;
        bool look;
    } kinds[] = {{"?:", false}, {"?=", true},  {"?!", true},
                 {"?>", false}, {"?<=", true}, {"?<!", true}};
    if (peek(t, 0) == '*') return fail(t, "a callout");
    if (peek(t, 0) != '?') return push_group(t, "(?:", t->caseless, false);
    for (size_t i = 0; i < FL_COUNT(kinds); i++) {
        char opening[8];
        const size_t n = strlen(kinds[i].opening);
        if (strncmp(t->in + t->at, kinds[i].opening, FL_MIN(n, t->n_bytes - t->at)) != 0 ||
            n > t->n_bytes - t->at)
            continue;
        t->at += n;
        (void)snprintf(opening, sizeof opening, "(%s", kinds[i].opening);
        return push_group(t, opening, t->caseless, kinds[i].look);
    }
    t->at++;
    return open_options(t);
}

static bool close_group(translation *t)
{
    if (t->n_groups == 0) return fail(t, "a ')' too many");
    const group g = t->groups[--t->n_groups];
    t->caseless = g.caseless;
    t->atom = !g.look;
    t->previous = 0;
    return put(t, ")");
}

static bool put_literal(translation *t, int32_t cp)
{
    static const char folding_pairs[] = "ss ff fi fl st";
    const char c = cp < 0x80 && is_letter((char)cp) ? (char)(cp | 0x20) : '\0';
    const char pair[] = {t->previous, c, '\0'};
    if (t->caseless && cp > 0x7F) return fail(t, "non-ASCII text under (?i)");
    if (t->caseless && t->previous && c && strstr(folding_pairs, pair))
        return fail(t, "text under (?i) that is the folding of one character");
    t->previous = c;
    t->atom = true;
    return put_char(t, cp);
}

static bool put_escape(translation *t)
{
    item it = {0};
    if (!read_escape(t, &it)) return false;
    if (it.cp >= 0) return put_literal(t, it.cp);
    t->atom = true;
    t->previous = 0;
    return put(t, "[") && put(t, it.set) && put(t, "]");
}

static bool put_next(translation *t)
{
    const fl_utf8_char u = fl__utf8_read(t->in + t->at, t->n_bytes - t->at);
    switch (u.cp) {
    case '*':
    case '+':
    case '?':
        return put_quantifier(t);
    case '{':
        return put_interval(t);
    case '^':
    case '$':
        return fail(t, "an anchor");
    default:
        break;
    }
    t->at += (size_t)u.n_bytes;
    switch (u.cp) {
    case '\\':
        return put_escape(t);
    case '(':
        return open_group(t);
    case ')':
        return close_group(t);
    case '[':
        t->atom = true;
        t->previous = 0;
        return put_class(t);
    case '.':
        t->atom = true;
        t->previous = 0;
        return put(t, ".");
    case '|':
        t->atom = false;
        t->previous = 0;
        return put(t, "|");
    default:
        return put_literal(t, u.cp);
    }
}

const char *fl__regex_translate(fl_text_buf *out, const char *regex, size_t n_bytes, size_t *at)
{
    translation t = {.in = regex, .n_bytes = n_bytes, .out = out};
    (void)put(&t, ""); /* PCRE2 wants an address for an empty pattern, too */
    while (t.at < n_bytes && !t.why)
        if (!put_next(&t)) break;
    if (!t.why && t.n_groups > 0) t.why = "a group without end";
    *at = t.no_memory ? SIZE_MAX : t.at;
    return t.why;
}
