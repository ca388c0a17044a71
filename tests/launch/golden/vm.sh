set -e

# create
gcloud compute tpus queued-resources create one --node-id one --zone us-east5-a --accelerator-type v6e-8 --runtime-version v2-alpha-tpuv6e

# wait
bash -c 'while state=$(gcloud compute tpus queued-resources describe one --zone us-east5-a --format '"'"'value(state.state)'"'"'); do
  echo "state: $state"
  case $state in
    ACTIVE) exit 0 ;;
    FAILED|SUSPENDING|SUSPENDED) exit 69 ;;
  esac
  sleep 30
done
exit 1'

# pack
tar --create --gzip --file ~/.cache/mmjax/launch/mmjax-one.tar.gz --exclude __pycache__ -C /checkout mmjax configs pyproject.toml constraints.txt README.md LICENSE

# copy
gcloud compute tpus tpu-vm scp ~/.cache/mmjax/launch/mmjax-one.tar.gz one: --zone us-east5-a --worker all

# install
gcloud compute tpus tpu-vm ssh one --zone us-east5-a --worker all --command 'set -e; mkdir -p mmjax-one; tar -xzf mmjax-one.tar.gz -C mmjax-one; cd mmjax-one; curl -LsSf https://astral.sh/uv/install.sh | sh; ~/.local/bin/uv venv --quiet --allow-existing --python 3.11; ~/.local/bin/uv pip install --quiet -c constraints.txt -e '"'"'.[tpu,cloud]'"'"''

# start
gcloud compute tpus tpu-vm ssh one --zone us-east5-a --worker all --command 'cd mmjax-one; rm -f code; nohup bash -c '"'"'.venv/bin/mmjax launch local -n 1 configs/quickstart.py:tiny --workdir gs://bucket/run; echo $? > code'"'"' > log 2>&1 < /dev/null & echo $! > pid'

# tail
gcloud compute tpus tpu-vm ssh one --zone us-east5-a --worker 0 --command 'cd mmjax-one; tail -n +1 --pid $(cat pid) -F log; exit $(cat code)'

# Later: resume starts it again on the same slice, delete ends the costs.
# resume: gcloud compute tpus tpu-vm ssh one --zone us-east5-a --worker all --command 'cd mmjax-one; rm -f code; nohup bash -c '"'"'.venv/bin/mmjax launch local -n 1 configs/quickstart.py:tiny --workdir gs://bucket/run; echo $? > code'"'"' > log 2>&1 < /dev/null & echo $! > pid'
# delete: gcloud compute tpus queued-resources delete one --zone us-east5-a --force --quiet
