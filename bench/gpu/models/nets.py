"""The networks of the checks and measurements: random weights from a fixed seed, so that every machine makes the same ones."""

import torch
from torch import nn

BERT_SEQUENCE = 128
IMAGE = 64


def bert_config(layers=12, hidden=768, heads=12, vocab=30522):
    """transformers' configuration of BERT-base. Dropout plays no part in inference."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=512,
    )


def hugging_face_bert(config, attention="sdpa"):
    """transformers' BertModel: what torch users run."""
    from transformers import BertModel

    torch.manual_seed(0)
    config._attn_implementation = attention
    model = BertModel(config).eval()
    # transformers sets biases to zero and norms to one; random ones make mistakes in either visible.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


class BertLayer(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden) for _ in range(4))
        self.attention_norm, self.norm = (nn.LayerNorm(hidden, eps=1e-12) for _ in range(2))
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x, mask):
        batch, length, hidden = x.shape
        split = lambda y: y.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = q @ k.transpose(2, 3) * (hidden // self.heads) ** -0.5 + mask
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, hidden)
        x = self.attention_norm(x + self.output(attended))
        return self.norm(x + self.down(nn.functional.gelu(self.up(x))))


class Bert(nn.Module):
    """
    The same network as plain matrix products, softmax and norms, which every exporter and every ONNX runtime takes. Input: ids and mask
    [batch, length], int64. Output: the pooled first token [batch, hidden], and with `hidden_states` every token [batch, length, hidden].
    """

    def __init__(self, source, hidden_states):
        super().__init__()
        config = source.config
        self.hidden_states = hidden_states
        self.words = source.embeddings.word_embeddings
        self.positions = source.embeddings.position_embeddings
        self.types = source.embeddings.token_type_embeddings
        self.norm = source.embeddings.LayerNorm
        self.pooler = source.pooler.dense
        self.layers = nn.ModuleList()
        for theirs in source.encoder.layer:
            layer = BertLayer(config.hidden_size, config.num_attention_heads)
            attention = theirs.attention
            layer.query, layer.key, layer.value = (getattr(attention.self, name) for name in ("query", "key", "value"))
            layer.output, layer.attention_norm = attention.output.dense, attention.output.LayerNorm
            layer.up, layer.down, layer.norm = theirs.intermediate.dense, theirs.output.dense, theirs.output.LayerNorm
            self.layers.append(layer)

    def forward(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        x = self.norm(self.words(input_ids) + self.types.weight[0] + self.positions.weight[:length])
        # A masked score of -10000 is zero after softmax in every type; the least float32 would be -inf in float16.
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        pooled = torch.tanh(self.pooler(x[:, 0]))
        return (x, pooled) if self.hidden_states else pooled


def spread(layer, std):
    """Outputs of about one, so that a tolerance means something."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.normal_(layer.bias, std=0.1)


def mlp():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 64)).eval()
    spread(model[-1], 0.4)
    return model


def resnet():
    """ResNet-18 with batch norms that do something: fresh ones are the identity."""
    from torchvision.models import resnet18

    torch.manual_seed(3)
    model = resnet18(weights=None, num_classes=100).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.6, 1.0)
    spread(model.fc, 0.1)
    return model


class Select(nn.Module):
    """Rows whose score is positive: how many there are depends on the values."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.embed, self.score = nn.Linear(32, 48), nn.Linear(48, 1)

    def forward(self, x):
        features = torch.tanh(self.embed(x))
        rows = torch.nonzero(self.score(features).squeeze(1) > 0).squeeze(1)
        return features[rows], rows
