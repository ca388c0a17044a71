set -e

# create
gcloud compute tpus queued-resources create demo --node-id demo --project lab --zone us-west4-b --accelerator-type v5litepod-64 --runtime-version v2-alpha-tpuv5-lite --spot

# wait
bash -c 'while state=$(gcloud compute tpus queued-resources describe demo --project lab --zone us-west4-b --format '"'"'value(state.state)'"'"'); do
  echo "state: $state"
  case $state in
    ACTIVE) exit 0 ;;
    FAILED|SUSPENDING|SUSPENDED) exit 69 ;;
  esac
  sleep 30
done
exit 1'

# pack
tar --create --gzip --file ~/.cache/mmjax/launch/mmjax-demo.tar.gz --exclude __pycache__ -C /checkout mmjax configs pyproject.toml constraints.txt README.md LICENSE

# copy
gcloud compute tpus tpu-vm scp ~/.cache/mmjax/launch/mmjax-demo.tar.gz demo: --project lab --zone us-west4-b --worker all

# install
gcloud compute tpus tpu-vm ssh demo --project lab --zone us-west4-b --worker all --command 'set -e; mkdir -p mmjax-demo; tar -xzf mmjax-demo.tar.gz -C mmjax-demo; cd mmjax-demo; curl -LsSf https://astral.sh/uv/install.sh | sh; ~/.local/bin/uv venv --quiet --allow-existing --python 3.11; ~/.local/bin/uv pip install --quiet -c constraints.txt -e '"'"'.[tpu,cloud]'"'"''

# start
gcloud compute tpus tpu-vm ssh demo --project lab --zone us-west4-b --worker all --command 'cd mmjax-demo; rm -f code; nohup bash -c '"'"'MMJAX_DISTRIBUTED=1 .venv/bin/mmjax launch local -n 1 configs/quickstart.py:tiny --workdir gs://bucket/run --compile-cache gs://bucket/compiled -- --optimizer.learning_rate 3e-4; echo $? > code'"'"' > log 2>&1 < /dev/null & echo $! > pid'

# tail
gcloud compute tpus tpu-vm ssh demo --project lab --zone us-west4-b --worker 0 --command 'cd mmjax-demo; tail -n +1 --pid $(cat pid) -F log; exit $(cat code)'

# Later: resume starts it again on the same slice, delete ends the costs.
# resume: gcloud compute tpus tpu-vm ssh demo --project lab --zone us-west4-b --worker all --command 'cd mmjax-demo; rm -f code; nohup bash -c '"'"'MMJAX_DISTRIBUTED=1 .venv/bin/mmjax launch local -n 1 configs/quickstart.py:tiny --workdir gs://bucket/run --compile-cache gs://bucket/compiled -- --optimizer.learning_rate 3e-4; echo $? > code'"'"' > log 2>&1 < /dev/null & echo $! > pid'
# delete: gcloud compute tpus queued-resources delete demo --project lab --zone us-west4-b --force --quiet
