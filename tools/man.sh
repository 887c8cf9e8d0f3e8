#!/bin/sh
# man.sh PROGRAM - the manual page of flatiron, made from `flatiron --help` and each verb's
# --help, on stdout. The program stays the only place where options are described.
#
# Verbs are the first words of the lines '  flatiron VERB ...' or '  VERB  what it does' in
# `flatiron --help` that answer to --help themselves. In a help text, unindented lines that end
# in ':' become headings, '  -x, --option VALUE  text' a tagged paragraph with the deeper lines
# below it, and what is indented otherwise (usage, examples) is kept as it stands.
# SPDX-License-Identifier: MIT
set -eu
program=$1
version=$("$program" --version | head -n 1 | grep -oE '[0-9]+\.[0-9]+\.[0-9]+')

to_man() { # help text on stdin
    awk '
    function literal(s) {
        gsub(/\\/, "\\e", s)
        gsub(/-/, "\\-", s)
        if (s ~ /^[.\x27]/) s = "\\\\\\&" s
        return s
    }
    function mode(want) { # "" running text, "nf" kept lines, "tp" tagged paragraph
        if (state == "nf" && want != "nf") print ".fi\n.RE"
        if (want == "nf" && state != "nf") print ".PP\n.RS\n.nf"
        state = want
    }
    function indent(s) { match(s, /^ */); return RLENGTH }
    /^ *$/ { if (state == "nf") print ""; else if (state == "") print ".PP"; next }
    /^[^ ].*:$/ { mode(""); print ".SS \"" literal(substr($0, 1, length($0) - 1)) "\""; next }
    /^ +-/ {
        mode("tp")
        depth = indent($0)
        line = substr($0, depth + 1)
        text = ""
        if (match(line, /  +/)) {
            text = substr(line, RSTART + RLENGTH)
            line = substr(line, 1, RSTART - 1)
        }
        print ".TP\n.B \"" literal(line) "\""
        if (text != "") print literal(text)
        next
    }
    state == "tp" && indent($0) > depth { print literal(substr($0, indent($0) + 1)); next }
    /^ / { mode("nf"); print literal($0); next }
    { mode(""); print literal($0) }
    END { mode("") }'
}

verbs() { # in the order of `flatiron --help`
    "$program" --help | awk '
        /^ +[a-z]+/ { word = $1 == "flatiron" ? $2 : $1
                      if (word ~ /^[a-z]+$/ && !seen[word]++) print word }' |
        while read -r verb; do
            if "$program" "$verb" --help >/dev/null 2>&1 </dev/null; then echo "$verb"; fi
        done
}

cat <<EOF
.\\" Made by tools/man.sh from the program's --help: change the texts in cli/ instead.
.TH FLATIRON 1 "" "flatiron $version" "User Commands"
.SH NAME
flatiron \\- quantise, evaluate and run large language models
.SH DESCRIPTION
EOF
"$program" --help | to_man
for verb in $(verbs); do
    printf '.SH "FLATIRON %s"\n' "$(echo "$verb" | tr '[:lower:]' '[:upper:]')"
    "$program" "$verb" --help | to_man
done
