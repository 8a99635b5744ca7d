#!/usr/bin/env bash
# Run the whole system on real music, in some minutes on a CPU: convert tunes and chorales of music21's corpus, describe
# them in six languages, train on them, then search and classify pieces that no training has seen.
#
#   bash code/quickstart.sh                 make .venv (unless a virtual environment is active), install, run
#   bash code/quickstart.sh --seed 1        hold out other pieces, start from another text encoder
#   bash code/quickstart.sh --pretrained    only the search, with the published weights (from the hub)
#   bash code/quickstart.sh --large         12,750 tunes, and whether what is learnt beats counting n-grams (--seed, too)
#
# Each command is printed before it runs. All files are below .quickstart/. The same command line continues a run that
# was interrupted, and shows the results of one that is finished; remove .quickstart/ to begin anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seed=0 large=
if [ "${1:-}" = --large ]; then
  large=large
  shift
fi
case "$large$#:${1:-}" in
  0: | large0: | 1:--pretrained) ;;
  1:--seed=* | large1:--seed=*) seed=${1#--seed=} ;;
  2:--seed | large2:--seed) seed=$2 ;;
  *) sed -n '2,11s/^# \{0,1\}//p' code/quickstart.sh; [ "$*" = --help ] || exit 2; exit ;;
esac
[[ $seed =~ ^[0-9]+$ ]] || { echo "error: --seed $seed: not a number from 0" >&2; exit 2; }

if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  source .venv/bin/activate
fi
echo "installing what requirements.txt pins"
python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt

PS4=$'\n$ ' BASH_XTRACEFD=1 # where each command is printed

if [ -n "$large" ]; then
  source code/quickstart_large.sh
  exit
fi
if [ "${1:-}" = --pretrained ]; then
  run=.quickstart/pretrained
  unset CLAMP2_CONFIG
  set -x
  python code/quickstart_data.py collect $run/library --tunes 200 --chorales 20
  python code/semantic_search.py search "a jig in D major" $run/library --top_k 12 --html $run/hits.html --download
  python code/semantic_search.py search "a reel in A major, in 2/4 time" $run/library --top_k 3
  python code/semantic_search.py search "Hornpipe in B-Dur, 2/4-Takt" $run/library --top_k 3
  python code/semantic_search.py search "une gigue à 9/8 en sol majeur" $run/library --top_k 3
  python code/semantic_search.py search "a chorale in G minor" $run/library --top_k 3
  exit
fi

run=.quickstart/seed$seed
if [ -e $run/results.json ]; then
  exec python code/quickstart_report.py $run
fi
mkdir -p $run
cat > $run/config.py << END
TRAIN_FOLDERS = ["../$run/interleaved/train", "../$run/mtf/train"]
EVAL_FOLDERS = ["../$run/interleaved/validation", "../$run/mtf/validation"]
TRAIN_JSONL = "../$run/train.jsonl"
EVAL_JSONL = "../$run/validation.jsonl"
NUM_WORKERS = 0
PATCH_LENGTH = 128
PATCH_NUM_LAYERS = 3
TOKEN_NUM_LAYERS = 1
M3_HIDDEN_SIZE = 128
M3_NUM_EPOCH = 1
M3_BATCH_SIZE = 16
M3_MASK_RATIO = 0.15  # the decoder takes most of the time
TEXT_MODEL_NAME = "../$run/text-model"
CLAMP2_HIDDEN_SIZE = 128
CLAMP2_NUM_EPOCH = 75
CLAMP2_LEARNING_RATE = 1e-3
CLAMP2_BATCH_SIZE = 64
WARMUP_STEPS = 20
MAX_GRAD_NORM = 1.0
KEEP_UNIT_LENGTH = False  # these weights are trained without that line
M3_WEIGHTS_PATH = "../$run/weights_m3.pth"
CLAMP2_WEIGHTS_PATH = "../$run/weights_clamp2.pth"
FEATURE_CACHE = "../$run/cache"
END
# The last epochs, at a tenth of the rate: results depend less on which steps are the last ones.
{ cat $run/config.py; printf 'CLAMP2_NUM_EPOCH = 85\nCLAMP2_LEARNING_RATE = 1e-4\n'; } > $run/config_slow.py

export CLAMP2_CONFIG=$run/config.py OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=1 HF_HUB_OFFLINE=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 # glibc keeps freed memory for the next step
echo "export CLAMP2_CONFIG=$CLAMP2_CONFIG # for the commands that follow"
set -x

python code/quickstart_data.py collect $run
python process_data/batch_abc2xml.py $run/tunes $run/tunes_xml
python code/quickstart_data.py prepare $run --seed "$seed"
python process_data/batch_xml2abc.py $run/scores $run/abc
python process_data/batch_interleaved_abc.py $run/abc $run/interleaved
python process_data/batch_midi2mtf.py $run/midi $run/mtf
python process_data/merge_jsonl.py $run/records/train $run/train.jsonl
python process_data/merge_jsonl.py $run/records/validation $run/validation.jsonl

python code/train_m3.py
python code/train_clamp2.py
CLAMP2_CONFIG=$run/config_slow.py python code/train_clamp2.py

mkdir -p $run/held_out/abc $run/held_out/mtf
cp -Rp $run/interleaved/test/. $run/held_out/abc
cp -Rp $run/mtf/test/. $run/held_out/mtf
python code/extract_clamp2.py $run/held_out $run/features --normalize
for kind in abc mtf; do
  python code/classify.py $run/features/$kind --classes $run/classes.json --json $run/classes_$kind.json \
    --labels $run/dance.csv $run/meter.csv $run/key.csv
done
python code/semantic_search.py metrics $run/features/text $run/features/abc --json $run/text_to_abc.json
python code/semantic_search.py metrics $run/features/text $run/features/mtf --json $run/text_to_mtf.json
python code/semantic_search.py metrics $run/features/abc $run/features/mtf --json $run/abc_to_mtf.json

python code/extract_m3.py $run/interleaved $run/features_m3
python code/linear_probe.py train $run/features_m3/train --labels $run/dance.csv --model $run/probe.pth
python code/linear_probe.py predict $run/probe.pth $run/features_m3/test --labels $run/dance.csv --evaluate \
  --json $run/probe.json --confusion $run/probe.png

python code/plot.py loss $run/logs_m3.txt $run/loss_m3.png
python code/plot.py loss $run/logs_clamp2.txt $run/loss_clamp2.png
python code/plot.py map $run/features/abc $run/map.png --labels $run/dance.csv
python code/plot.py similarity $run/features/abc $run/similarity.png --labels $run/dance.csv --other $run/features/mtf

# A library of three file types: MIDI and standard ABC made of MTF and interleaved ABC, and MusicXML.
python process_data/batch_mtf2midi.py $run/mtf/test $run/again
python process_data/batch_interleaved_abc.py $run/interleaved/test $run/again --reverse
mkdir -p $run/library
find $run/scores/test -name '[0-9A-H]*' -exec cp {} $run/library ';'
find $run/again -name '[I-R]*.mid' -exec cp {} $run/library ';'
find $run/again -name '[S-Za-z]*.abc' -exec cp {} $run/library ';'
python code/semantic_search.py search "a jig in D major" $run/library --top_k 12 --html $run/hits.html --json $run/hits_0.json
python code/semantic_search.py search "a reel in A major, in 2/4 time" $run/library --top_k 3 --json $run/hits_1.json
python code/semantic_search.py search "Hornpipe in B-Dur, 2/4-Takt" $run/library --top_k 3 --json $run/hits_2.json
python code/semantic_search.py search "une gigue à 9/8 en sol majeur" $run/library --top_k 3 --json $run/hits_3.json
python code/semantic_search.py search "a chorale in G minor" $run/library --top_k 3 --json $run/hits_4.json

python code/quickstart_report.py $run
