// Images that are none of the classes, and no more than a promised share of those that are: answers/rejection.py, number by number.

import { rank } from "./sets.mjs";

const ODDS_WEIGHT = 0.5; // of the log-odds beside the distance
const MIN_DOUBT = 1e-6; // a smaller one is rounding
const MAX_CALIBRATION_IMAGES = 10000;
export const NONE = "none of these";

// Whether so many images are enough for a share.
export const possible = ({ sure }, share) => rank(sure.length, share) > 0;

// The familiarity of a model with so many classes. Raises an Error for anything else.
export function checked(familiarity, count) {
  const { sure, distances, known, source, grouped = false } = familiarity ?? {};
  const within = (values, most) => Array.isArray(values) && values.length > 0 && values.length <= MAX_CALIBRATION_IMAGES &&
    values.every((each) => typeof each === "number" && each >= 0 && each <= most);
  if (!within(sure, 1) || !within(distances, 2) || sure.length !== distances.length ||
      !Number.isInteger(known) || known < 1 || known > count || !["folds", "held out"].includes(source))
    throw Error("familiarity.json is damaged: copy the folder again, or export it again.");
  return { sure, distances, known, source, grouped: Boolean(grouped) };
}

function odds(sure) {
  const doubt = Math.max(1 - sure, MIN_DOUBT);
  return Math.log(Math.max(1 - doubt, MIN_DOUBT) / doubt);
}

// The standard deviation of values and one more, or a tiny one of equal values.
function deviation(values, one) {
  const count = values.length + 1, mean = values.reduce((sum, each) => sum + each, one) / count;
  const squares = values.reduce((sum, each) => sum + (each - mean) ** 2, (one - mean) ** 2);
  return Math.max(Math.sqrt(squares / count), 1e-9);
}

// A function that says of rows {probability, place} of an image, the most probable first, and of its distance whether it is
// none of the classes: too few of the own images have as high a score. An image of a class that was added by name, which come last,
// never is.
export function judge({ sure, distances, known }, share) {
  const least = rank(sure.length, share), own = sure.map(odds);
  return (rows, distance) => {
    if (rows[0].place >= known) return false;
    const certain = odds(rows[0].probability), far = deviation(distances, distance), doubt = deviation(own, certain);
    const higher = own.filter((each, i) => (distances[i] - distance) / far - ODDS_WEIGHT * ((each - certain) / doubt) >= 0);
    return higher.length < least;
  };
}
