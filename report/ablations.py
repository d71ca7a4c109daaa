"""The settings and ideas that are held against the classifier as it stands, with one model a fold.

ABLATIONS: (group, setting): (options, lines of 0123456_transformer.py that are others, how many seeds). All else is the
script's own.
"""


def change(text):
    """{old: new} of a text whose lines begin with - (a line of the script) or + (what stands there instead)."""
    changes, old, new = {}, "", ""
    for line in [*text.strip("\n").splitlines(), "-"]:
        if line[0] == "-" and new:
            changes[old] = new
            old = new = ""
        old, new = (old + line[1:] + "\n", new) if line[0] == "-" else (old, new + line[1:] + "\n")
    return changes


TRAINING = "        optimizer.zero_grad()"
POOLING = "        logits = self.classify(x.amax(1))  # the largest over the text of each of the D features"
NORM = "        x = self.norm(x).masked_fill(~mask[..., None], torch.finfo(x.dtype).min)"
ANSWER = "        return (logits, maps) if return_attention else logits"
VECTORS = "        x, maps = self.project(self.embedding(tokens)) + position, []"
LAYERS = "        self.layers = nn.ModuleList(EncoderLayer(D, c.nhead, c.d_hid, c.dropout) for _ in range(c.nlayers))"
AVERAGE = "        tokens, average = tokens.to(device), AveragedModel(model.to(device))"
KEEP = "        model.embedding.weight.requires_grad = not vectors  # or words of the training rows drift from the rest"
BAYES = (
    "        if not self.training:"
    "  # there the ratios, counted on the same rows, would leave the encoder nothing to learn"
)
TRUST = "        self.trust = 0.3 if width else 1.0  # in the ratios; an encoder that had no vectors knows less"
ADAMW = "        optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.98), fused=True)"
RATE = '        optimizer.param_groups[0]["lr"] = config.lr * min(10 * done + 1e-3, 1 - done)'
LOSS = "        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)"
KEPT = "    places = kept.int().argsort(dim=1, descending=True, stable=True)  # (N, T), of the words kept first"

IDEAS = {
    "as it is": "",
    "no label smoothing": f"""
-{LOSS}
+        loss = F.cross_entropy(logits, labels[rows])
""",
    "last epoch's weights, no average": """
-            if epoch >= config.epochs - max(1, config.epochs // 3):
+            if epoch == config.epochs - 1:
""",
    "no positions": """
-        self.register_buffer("position", 0.1 * position, persistent=False)
+        self.register_buffer("position", 0 * position, persistent=False)
""",
    "learned positions": """
-        self.register_buffer("position", 0.1 * position, persistent=False)
+        self.position = nn.Parameter(0.1 * position)
""",
    "vectors trained on": f"""
-{KEEP}
+        pass
""",
    "vectors trained on at a tenth of the rate": f"""
-{KEEP}
+        pass
-{ADAMW}
+        slow = model.embedding.weight
+        groups = [dict(params=[p for p in model.parameters() if p is not slow]), dict(params=[slow])]
+        optimizer = torch.optim.AdamW(groups, config.lr, betas=(0.9, 0.98), fused=True)
-{RATE}
+{RATE}
+        optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"] / 10
""",
    "vectors trained on, pulled back to where they were": f"""
-{KEEP}
+        model.anchor = model.embedding.weight.detach().clone()
-{TRAINING}
+        words = tokens[rows, :T]
+        loss = loss + (model.embedding(words) - model.anchor[words]).square().sum(2).mean() / 2
+{TRAINING}
""",
    "no naive Bayes beside it": f"""
-{TRUST}
+        self.trust = 0.0
""",
    "naive Bayes beside it in training too": f"""
-{BAYES}
+        if True:
""",
    "a tenth of the features cut off": f"""
-{VECTORS}
+        x, maps = self.project(self.embedding(tokens)) + position, []
+        x = x * (torch.rand(len(x), 1, x.size(2)) >= 0.1 * self.training)
""",
    "running average of all epochs": f"""
-{AVERAGE}
+        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
+        tokens, average = tokens.to(device), AveragedModel(model.to(device), multi_avg_fn=decay)
-            if epoch >= config.epochs - max(1, config.epochs // 3):
+            if True:
""",
    "vectors centred, two top components out": """
-    config.lr = config.lr or (1e-3 if vectors else 2e-3)
+    config.lr = config.lr or (1e-3 if vectors else 2e-3)
+    table = np.stack([*vectors.values()])
+    table -= table.mean(0)
+    top = np.linalg.svd(table, full_matrices=False)[2][:2]
+    vectors = dict(zip(vectors, table - table @ top.T @ top))
""",
    "adversarial noise on the vectors": f"""
-{VECTORS}
+        self.seen = (self.embedding(tokens) + getattr(self, "noise", 0)).requires_grad_()
+        x, maps = self.project(self.seen) + position, []
-{TRAINING}
+        gradient = torch.autograd.grad(loss, model.seen, retain_graph=True)[0]
+        model.noise = gradient / gradient.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-12)
+        noisy = model(tokens[rows, :T], places=places[rows, :T])
+        loss, model.noise = (loss + F.cross_entropy(noisy, labels[rows], label_smoothing=0.1)) / 2, 0
+{TRAINING}
""",
    "R-Drop": f"""
-{TRAINING}
+        again = model(tokens[rows, :T], places=places[rows, :T])
+        loss = (loss + F.cross_entropy(again, labels[rows], label_smoothing=0.1)) / 2
+        a, b = logits.log_softmax(1), again.log_softmax(1)
+        far = F.kl_div(a, b, log_target=True, reduction="sum") + F.kl_div(b, a, log_target=True, reduction="sum")
+        loss = loss + far / len(a) / 2
+{TRAINING}
""",
    "mixup of pooled vectors": f"""
-{POOLING}
+        pooled = x.amax(1)
+        if self.training:
+            self.order, self.share = torch.randperm(len(x)), torch.distributions.Beta(0.5, 0.5).sample()
+            pooled = self.share * pooled + (1 - self.share) * pooled[self.order]
+        logits = self.classify(pooled)
-{LOSS}
+        loss = model.share * F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
+        loss = loss + (1 - model.share) * F.cross_entropy(logits, labels[rows][model.order], label_smoothing=0.1)
""",
    "spans of 8 words left out too": f"""
-{KEPT}
+    begin = torch.rand(len(tokens), 1) * (tokens != PAD).sum(1, keepdim=True) - 8
+    column = torch.arange(tokens.size(1))
+    kept &= (column < begin) | (column >= begin + 8)
+{KEPT}
""",
    "hashed character n-grams added to the vectors": f"""
-{LAYERS}
+        from zlib import crc32
+        words = [f"<{{word}}>" for word in vocabulary]
+        grams = [[word[i : i + n] for n in (3, 4, 5) for i in range(len(word) - n + 1)][:30] for word in words]
+        grams = [torch.tensor([1 + crc32(gram.encode()) % 20000 for gram in row] or [0]) for row in grams]
+        grams = nn.utils.rnn.pad_sequence(grams, batch_first=True)
+        self.register_buffer("grams", grams, persistent=False)
+        self.gram = nn.EmbeddingBag(20001, width or D, padding_idx=0)
+        nn.init.zeros_(self.gram.weight)
+{LAYERS}
-{VECTORS}
+        words, back = tokens.unique(return_inverse=True)
+        x, maps = self.project(self.embedding(tokens) + self.gram(self.grams[words])[back]) + position, []
""",
    "temperature 0.8": f"""
-{ANSWER}
+        logits = logits if self.training else logits / 0.8
+{ANSWER}
""",
    "a mark between title and content": """
-        texts = map(" ".join, zip(table["title"], table["content"], strict=True))
+        texts = map(" | ".join, zip(table["title"], table["content"], strict=True))
""",
    "a mark before capitals": r"""
-    return re.sub(r"<[^<>]*>|\\", " ", text).lower()
+    return re.sub(r"\b([A-Z])", r" ^ \1", re.sub(r"<[^<>]*>|\\", " ", text)).lower()
""",
    "masked words predicted first, 12 epochs": f"""
-{AVERAGE}
+        pretrainer = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.98), fused=True)
+        texts = encode([news.train[i] for i in inside], vocabulary)
+        for rows in [rows for _ in range(12) for rows in torch.randperm(len(texts)).split(config.batch_size)]:
+            truth, real = texts[rows], texts[rows] != PAD
+            hidden = real & (torch.rand(truth.shape) < 0.15)
+            x = model.project(model.embedding(truth.masked_fill(hidden, UNK))) + model.position[: truth.size(1)]
+            for layer in model.layers:
+                x, _ = layer(x, real)
+            scores = model.norm(x[hidden]) @ model.project(model.embedding.weight).T
+            pretrainer.zero_grad()
+            F.cross_entropy(scores, truth[hidden]).backward()
+            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
+            pretrainer.step()
+{AVERAGE}
""",
}

MATTER = (  # the ideas that get three seeds: what the defaults rest on, and what did best with one
    "as it is",
    "vectors trained on",
    "no naive Bayes beside it",
    "adversarial noise on the vectors",
    "R-Drop",
    "no positions",
    "mixup of pooled vectors",
    "spans of 8 words left out too",
    "a tenth of the features cut off",
    "a mark between title and content",
    "a mark before capitals",
)

ABLATIONS = {
    ("tokenizer", "wordpunct"): ("", "", 3),
    **{("tokenizer", name): (f"--tokenizer {name}", "", 3) for name in ("whitespace", "treebank", "toktok", "tweet")},
    ("embeddings", "GloVe, 100 wide"): ("", "", 3),
    ("embeddings", "none"): ("--embeddings none", "", 3),
    **{("layers", str(n)): (f"--nlayers {n}" * (n != 1), "", 3) for n in (1, 2)},
    **{("heads", str(n)): (f"--nhead {n}" * (n != 4), "", 3 if n == 4 else 1) for n in (1, 4, 8)},
    **{("d_model", str(n)): (f"--d-model {n}" * (n != 128), "", 3 if n < 256 else 1) for n in (64, 128, 256)},
    **{("d_hid", str(n)): (f"--d-hid {n}" * (n != 256), "", 3 if n < 512 else 1) for n in (128, 256, 512)},
    **{
        ("dropout", str(share)): (f"--dropout {share}" * (share != 0.1), "", 3 if share == 0.1 else 1)
        for share in (0.0, 0.1, 0.3)
    },
    **{
        ("dropout", f"words {share}"): (f"--word-dropout {share}", "", 3 if share == 0.7 else 1)
        for share in (0.0, 0.25, 0.7)
    },
    ("pooling", "max"): ("", "", 3),
    ("pooling", "mean"): (
        "",
        f"""
-{NORM}
+        x = self.norm(x).masked_fill(~mask[..., None], 0)
-{POOLING}
+        logits = self.classify(x.sum(1) / mask.sum(1, keepdim=True))
""",
        3,
    ),
    ("pooling", "max and mean"): (
        "",
        f"""
-        self.classify = nn.Sequential(nn.Dropout(0.3), nn.Linear(D, classes))
+        self.classify = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * D, classes))
-{POOLING}
+        mean = x.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)
+        logits = self.classify(torch.cat([x.amax(1), mean], 1))
""",
        3,
    ),
    ("pooling", "attention by a learned query"): (
        "",
        f"""
-{LAYERS}
+        self.query = nn.Linear(D, 1)
+{LAYERS}
-{NORM}
+        x = self.norm(x)
-{POOLING}
+        logits = self.classify((self.query(x).masked_fill(~mask[..., None], -1e9).softmax(1) * x).sum(1))
""",
        3,
    ),
    ("optimizer", "AdamW"): ("", "", 3),
    ("optimizer", "Adam"): ("", f"-{ADAMW}\n+{ADAMW.replace('AdamW', 'Adam')}", 3),
    ("optimizer", "SGD, momentum 0.9, rate 0.05"): (
        "--lr 0.05",
        f"-{ADAMW}\n+        optimizer = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9)",
        3,
    ),
    ("activation", "GELU"): ("", "", 3),
    **{
        ("activation", name): (
            "",
            f"""
-        self.feed_forward = nn.Sequential(nn.Linear(d_model, d_hid), nn.GELU(), nn.Linear(d_hid, d_model))
+        self.feed_forward = nn.Sequential(nn.Linear(d_model, d_hid), nn.{name}(), nn.Linear(d_hid, d_model))
""",
            3,
        )
        for name in ("ReLU", "Tanh", "SiLU")
    },
    ("scheduler", "warm-up, linear decay"): ("", "", 3),
    ("scheduler", "warm-up, half cosine"): (
        "",
        f"-{RATE}\n+{RATE.replace('1 - done', '(1 + math.cos(math.pi * done)) / 2')}",
        3,
    ),
    ("scheduler", "none"): ("", f'-{RATE}\n+        optimizer.param_groups[0]["lr"] = config.lr', 3),
    **{("ideas", name): ("", text, 3 if name in MATTER else 1) for name, text in IDEAS.items()},
}
