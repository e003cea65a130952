// Prediction sets that miss the right class no more often than promised: the limits of answers/sets.py, number by number.

const CONFIDENCE = 0.9; // share of draws of the images by which a promise is kept
const PER_CLASS_FACTOR = 3; // classes have limits of their own from so many times the images on that the error needs
const MAX_CALIBRATION_IMAGES = 10000;
export const ERRORS = [0.01, 0.05, 0.1];

// The place, from 1, of a limit among so many images by which at most this share of new ones is missed for nine of ten draws of the
// images; 0 if they are too few. It is the number of counts whose chance, of so many or fewer below the share, is at most 0.1.
export function rank(images, share) {
  let ways = 0, sum = 0, found = 0;
  for (let fewer = 0; fewer <= Math.ceil(images * share); fewer++) {
    if (fewer) ways += Math.log((images - fewer + 1) / fewer);
    sum += Math.exp(ways + fewer * Math.log(share) + (images - fewer) * Math.log1p(-share));
    if (sum <= 1 - CONFIDENCE) found++;
  }
  return found;
}

// How many images an error needs.
export const needed = (error) => Math.ceil(Math.round((Math.log(1 - CONFIDENCE) / Math.log1p(-error)) * 1e9) / 1e9);

// The calibration of a model with so many classes. Raises an Error for anything else.
export function checked(calibration, count) {
  const { shares, classes, known, source, grouped = false, broken = [], missed = [] } = calibration ?? {};
  const whole = (x) => Number.isInteger(x) && x >= 0;
  const small = (list) => Array.isArray(list) && list.every((x) => typeof x === "number" && x > 0 && x <= 1);
  if (!Array.isArray(shares) || !Array.isArray(classes) || !whole(known) || known > count ||
      shares.length !== classes.length || !shares.length || shares.length > MAX_CALIBRATION_IMAGES ||
      !shares.every((share, i) => typeof share === "number" && share >= (i ? shares[i - 1] : 0) && share <= 1) ||
      !classes.every((number) => whole(number) && number < known) || !["folds", "held out"].includes(source) ||
      !small(broken) || !small(missed) || broken.length !== missed.length)
    throw Error("calibration.json is damaged: copy the folder again, or export it again.");
  return { shares, classes, known, source, grouped: Boolean(grouped), broken, missed };
}

// Whether no measurement speaks against promising an error.
export const isKept = ({ broken, missed }, error) =>
  !broken.some((each, i) => each <= error && error < missed[i]);

// The probability of each class from which on it belongs to the set; classes without images of their own come last.
export function limits({ shares, classes, known }, error, count) {
  const found = Array(count).fill(shares[rank(shares.length, error) - 1]);
  const own = Array.from({ length: known }, () => []);
  classes.forEach((number, i) => own[number].push(shares[i]));
  if (own.every((each) => each.length >= PER_CLASS_FACTOR * needed(error)))
    own.forEach((each, number) => (found[number] = each[rank(each.length, error) - 1]));
  return found;
}

// Of rows {probability, place} of one image, the most probable first: those in its set, which the first always is.
export const chosen = (rows, found) => rows.filter(({ probability, place }, i) => !i || probability >= found[place]);

export const decide = (rows) => (rows.length === 1 ? "answer" : "unsure");
