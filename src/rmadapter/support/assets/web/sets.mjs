// Prediction sets that miss the right class no more often than promised: the limits of answers/sets.py, number by number.

const PER_CLASS_FACTOR = 5; // classes have limits of their own if that costs at most 1/5 of the error
const MAX_CALIBRATION_IMAGES = 10000;
export const ERRORS = [0.01, 0.05, 0.1];

const rounded = (x) => Math.round(x * 1e9) / 1e9;
const place = (images, error) => Math.floor(rounded((images + 1) * error)) - 1;

// How many images an error needs.
export const needed = (error) => Math.ceil(rounded(1 / error)) - 1;

// The calibration of a model with so many classes. Raises an Error for anything else.
export function checked(calibration, count) {
  const { shares, classes, known, source, grouped = false } = calibration ?? {};
  const whole = (x) => Number.isInteger(x) && x >= 0;
  if (!Array.isArray(shares) || !Array.isArray(classes) || !whole(known) || known > count ||
      shares.length !== classes.length || !shares.length || shares.length > MAX_CALIBRATION_IMAGES ||
      !shares.every((share, i) => typeof share === "number" && share >= (i ? shares[i - 1] : 0) && share <= 1) ||
      !classes.every((number) => whole(number) && number < known) || !["folds", "held out"].includes(source))
    throw Error("calibration.json is damaged: copy the folder again, or export it again.");
  return { shares, classes, known, source, grouped: Boolean(grouped) };
}

// The probability of each class from which on it belongs to the set; classes without images of their own come last.
export function limits({ shares, classes, known }, error, count) {
  const found = Array(count).fill(shares[place(shares.length, error)]);
  const own = Array.from({ length: known }, () => []);
  classes.forEach((number, i) => own[number].push(shares[i]));
  const least = PER_CLASS_FACTOR * (needed(error) + 1) - 1;
  if (own.every((each) => each.length >= least))
    own.forEach((each, number) => (found[number] = each[place(each.length, error)]));
  return found;
}

// Of rows {probability, place} of one image, the most probable first: those in its set, which the first always is.
export const chosen = (rows, found) => rows.filter(({ probability, place }, i) => !i || probability >= found[place]);

export const decide = (rows) => (rows.length === 1 ? "answer" : "unsure");
