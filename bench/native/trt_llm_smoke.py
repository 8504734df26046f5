"""Compares the output of trt_llm_smoke with reference outputs. usage: trt_llm_smoke.py GOLDENS.json OUT.jsonl"""
import collections
import json
import sys

goldens = json.load(open(sys.argv[1]))['prompts']
rows = collections.defaultdict(dict)
for line in open(sys.argv[2]):
    row = json.loads(line)
    rows[row['mode']][row['prompt']] = row


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


for mode in ('solo', 'batch', 'nograph'):
    logit_error = logprob_error = logprob_sum = 0.0
    count = equal = 0
    early = []
    for i, golden in enumerate(goldens):
        row = rows[mode][i]
        reference = [x for x in golden['prompt_logprobs'] if x is not None]
        if len(reference) != len(row['promptLogprobs']):
            sys.exit(f'{mode} {golden["name"]}: {len(row["promptLogprobs"])} prompt log-probabilities')
        for x, y in zip(reference, row['promptLogprobs']):
            logprob_error = max(logprob_error, abs(x - y))
            logprob_sum += abs(x - y)
            count += 1
        if 'logits' in row:
            logit_error = max([logit_error] + [abs(row['logits'][t] - x) for t, x in golden['top20']])
        n = common(golden['greedy']['ids'], row['ids'])
        equal += n
        if n < len(row['ids']) and n < len(golden['greedy']['top2_gap']):
            early.append((golden['name'], n, golden['greedy']['top2_gap'][n]))
    print(f'{mode}: largest error of top-20 logits {logit_error:.2e}, of prompt log-probabilities {logprob_error:.2e} '
          f'(mean {logprob_sum / max(count, 1):.2e}); greedy tokens equal {equal}')
    print('  first difference (name, token, reference gap there):', sorted(early, key=lambda x: -x[2])[:6])
for a, b in (('solo', 'batch'), ('batch', 'nograph'), ('seed1', 'seed2')):
    same = sum(rows[a][i]['ids'] == rows[b][i]['ids'] for i in rows[a])
    print(f'{a} = {b}: {same} of {len(rows[a])}')
print('seed1 differs from greedy:', sum(rows['seed1'][i]['ids'] != rows['batch'][i]['ids'] for i in rows['seed1']))
