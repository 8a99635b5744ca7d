# The part of quickstart.sh that --large runs: M3 and CLaMP 2 on 12,750 tunes, against counting n-grams.
data=.quickstart/large
run=$data/seed$seed
if [ -e $run/results.json ]; then
  exec python code/quickstart_probe.py report $data/seed*
fi
mkdir -p $run
m3_epochs=5 clamp2_epochs=30 workers=0
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  m3_epochs=20 clamp2_epochs=60 workers=-1 # it has the time
fi
cat > $run/config.py << END
TRAIN_FOLDERS = ["../$run/music/train"]
EVAL_FOLDERS = ["../$run/music/validation"]
TRAIN_JSONL = "../$run/train.jsonl"
EVAL_JSONL = "../$run/validation.jsonl"
NUM_WORKERS = $workers
PATCH_LENGTH = 128
PATCH_NUM_LAYERS = 3
TOKEN_NUM_LAYERS = 1
M3_HIDDEN_SIZE = 128
M3_NUM_EPOCH = $m3_epochs
M3_BATCH_SIZE = 32
M3_LEARNING_RATE = 5e-4
M3_MASK_RATIO = 0.15  # the decoder takes most of the time
TEXT_MODEL_NAME = "../$run/text-model"
CLAMP2_HIDDEN_SIZE = 128
CLAMP2_NUM_EPOCH = $clamp2_epochs
CLAMP2_LEARNING_RATE = 5e-4
CLAMP2_BATCH_SIZE = 128
WARMUP_STEPS = 100
MAX_GRAD_NORM = 1.0
KEEP_UNIT_LENGTH = False  # these weights are trained without that line
M3_WEIGHTS_PATH = "../$run/weights_m3.pth"
CLAMP2_WEIGHTS_PATH = "../$run/weights_clamp2.pth"
FEATURE_CACHE = "../$run/cache"
END
{ cat $run/config.py; echo "M3_WEIGHTS_PATH = \"../$run/weights_untrained.pth\""; } > $run/config_untrained.py

export CLAMP2_CONFIG=$run/config.py OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 # glibc keeps freed memory for the next step
echo "export CLAMP2_CONFIG=$CLAMP2_CONFIG # for the commands that follow"
set -x

# Status 1, of commands that left something out, is no failure here; /dev/null takes what `set -x` prints of the test.
# For all seeds. The ABC is written anew, so that its notation does not betray the collection.
if [ ! -e $data/tunes.json ]; then
  python code/quickstart_large.py collect $data
  python process_data/batch_abc2xml.py $data/tunes $data/scores
  python process_data/batch_xml2abc.py $data/scores $data/abc
  python process_data/batch_interleaved_abc.py $data/abc $data/interleaved
  python code/find_twins.py $data/scores --json $data/twins.json || { [ $? = 1 ]; } > /dev/null # tunes of under 16 notes
  python code/quickstart_large.py describe $data
fi
python code/quickstart_large.py prepare $data $run --seed "$seed"
python process_data/merge_jsonl.py $run/records/train $run/train.jsonl
python process_data/merge_jsonl.py $run/records/validation $run/validation.jsonl

python code/train_m3.py
python code/train_clamp2.py
CLAMP2_CONFIG=$run/config_untrained.py python code/quickstart_probe.py untrained --seed "$seed"

python code/extract_m3.py $run/music $run/features/m3
python code/extract_clamp2.py $run/music $run/features/clamp2 --normalize
CLAMP2_CONFIG=$run/config_untrained.py python code/extract_m3.py $run/music $run/features/untrained

python code/quickstart_probe.py probe $data $run
for kind in untrained m3; do # left out: tunes without a label, or rare ones
  for asked in region genre collection; do
    python code/linear_probe.py train $run/features/$kind/train --labels $run/labels/$asked.csv \
      --model $run/probe_$kind/$asked.pth || { [ $? = 1 ]; } > /dev/null
  done
done
for question in test_region test_genre test_collection dva_region boehme_genre oneill_genre; do
  part=${question%_*} asked=${question#*_}
  for kind in untrained m3; do
    python code/linear_probe.py predict $run/probe_$kind/$asked.pth $run/features/$kind/$part --evaluate \
      --labels $run/labels/$asked.csv --json $run/probe_$kind/$question.json || { [ $? = 1 ]; } > /dev/null
  done
  for language in English German; do
    python code/classify.py $run/features/clamp2/$part --classes $run/classes/${asked}_$language.json \
      --labels $run/labels/$asked.csv --json $run/words/${question}_$language.json || { [ $? = 1 ]; } > /dev/null
  done
done
python code/quickstart_probe.py report $data/seed*
