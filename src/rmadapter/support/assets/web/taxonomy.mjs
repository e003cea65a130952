// Parents of labels: the best group of each level, and the lowest group that holds several classes, as in taxonomy.py.

const MAX_DEPTH = 100;  // parents above one label

// The parents of a label, the top one first.
function path(parents, label) {
  const found = [label];
  while (Object.hasOwn(parents, found.at(-1))) {
    const parent = parents[found.at(-1)];
    if (typeof parent !== "string" || found.length > MAX_DEPTH || found.includes(parent)) throw Error();
    found.push(parent);
  }
  return found.slice(1).reverse();
}

// The tree of a model's labels: of each level, the group of each label; null if no label has a parent. Raises an Error for
// anything else.
export function checked(parents, labels) {
  try {
    if (typeof parents !== "object" || Array.isArray(parents)) throw Error();
    const paths = labels.map((label) => path(parents, label)), depth = Math.max(...paths.map(({ length }) => length));
    const known = new Set(labels);
    if (paths.some((names) => names.some((name) => known.has(name)))) throw Error();
    const group = (level) => labels.map((label, number) => paths[number][depth - level] ?? label);
    return depth ? Array.from({ length: depth + 1 }, (_, level) => group(level)) : null;
  } catch {
    throw Error("taxonomy.json is damaged: copy the folder again, or export it again.");
  }
}

// Of rows {probability, place} of one image: the most probable group of each level above the labels, the lowest first.
export function best(tree, rows) {
  const shares = [];
  for (const { probability, place } of rows) shares[place] = probability;
  return tree.slice(1).map((groups) => {
    const sums = new Map();
    shares.forEach((share, place) => sums.set(groups[place], (sums.get(groups[place]) ?? 0) + share));
    return [...sums].reduce((first, each) => (each[1] > first[1] ? each : first));
  }).map(([label, probability]) => ({ label, probability }));
}

// The lowest group that holds the classes of all rows; null if none does.
export function common(tree, rows) {
  const level = tree.find((groups) => new Set(rows.map(({ place }) => groups[place])).size === 1);
  return level ? level[rows[0].place] : null;
}
